// The core against a stand-in for the bridge: core_test FAKE_BRIDGE.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "clip.h"

namespace {

using vs3r::Clip;
using vs3r::Depth;
using vs3r::Settings;
using vs3r::State;

std::filesystem::path folder;

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);                              \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (false)

Settings settings(const std::string &media) {
    Settings result;
    result.media = media;
    return result;
}

int lines(const char *name, const std::string &wanted = "") {
    std::ifstream file(folder / name);
    int count = 0;
    for (std::string line; std::getline(file, line);) count += wanted.empty() || line == wanted;
    return count;
}

bool shows(const std::shared_ptr<const vs3r::Picture> &picture, int value) {
    if (picture == nullptr || picture->bytes.empty()) return false;
    for (std::uint8_t byte : picture->bytes)
        if (byte != value) return false;
    return true;
}

bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

std::string error_of(Clip &clip) {
    try {
        clip.frame(0, {4, 4, Depth::byte}, nullptr);
    } catch (const vs3r::Error &error) {
        return error.what();
    }
    return "";
}

void an_analysis_is_asked_for_and_then_frames_come() {
    Clip clip(settings("fresh"));
    EXPECT(clip.frame(3, {4, 2, Depth::byte}, nullptr) == nullptr);
    EXPECT(clip.state() == State::not_analysed);
    EXPECT(has(clip.status(), "press Analyse"));
    EXPECT(lines("started", "1 fresh") == 0);
    clip.analyse();
    clip.wait(1 << 20, nullptr);
    EXPECT(clip.state() == State::ready && clip.frames() == 20 && clip.progress() == 1);
    auto picture = clip.frame(3, {4, 2, Depth::single}, nullptr);
    EXPECT(shows(picture, 3) && picture->bytes.size() == 4 * 4 * 4 * 2);
    EXPECT(shows(clip.frame(-5, {4, 2, Depth::byte}, nullptr), 0));
    EXPECT(shows(clip.frame(400, {4, 2, Depth::half_word}, nullptr), 19));
}

void a_frame_keeps_its_shape() {
    Clip clip(settings("shaped"));
    auto picture = clip.frame(3, {8, 8, Depth::byte, 1}, nullptr);
    EXPECT(shows(picture, 3) && picture->width == 8 && picture->height == 4);
    EXPECT(clip.frame(3, {8, 8}, nullptr)->height == 8);
}

void a_frame_is_drawn_once() {
    Clip clip(settings("cached"));
    int before = lines("drawn", "11");
    for (int i = 0; i < 3; ++i) EXPECT(shows(clip.frame(11, {4, 4, Depth::byte}, nullptr), 11));
    EXPECT(lines("drawn", "11") == before + 1);
}

void the_cache_is_bounded() {
    Clip clip(settings("cache"));
    int before = lines("drawn");
    // 64 MiB each: the first is gone when it is asked for again, the last is not.
    for (int frame : {0, 1, 2, 3, 4, 0, 4}) EXPECT(clip.frame(frame, {4096, 1024, Depth::single}, nullptr) != nullptr);
    EXPECT(lines("drawn") == before + 6);
}

void frames_come_right_from_many_threads() {
    std::vector<std::thread> threads;
    std::shared_ptr<Clip> clip = vs3r::find_clip(settings("threads"));
    for (unsigned seed = 0; seed < 4; ++seed)
        threads.emplace_back([clip, seed] {
            std::mt19937 random(seed);
            for (int i = 0; i < 40; ++i) {
                int index = static_cast<int>(random() % 20);
                EXPECT(shows(clip->frame(index, {4 + index % 2, 4, Depth::byte}, nullptr), index));
            }
        });
    for (std::thread &thread : threads) thread.join();
}

void equal_settings_share_a_clip_and_others_do_not() {
    Settings other = settings("shared");
    other.smoothness = 0.9;
    EXPECT(vs3r::find_clip(settings("shared")) == vs3r::find_clip(settings("shared")));
    EXPECT(vs3r::find_clip(settings("shared")) != vs3r::find_clip(other));
    EXPECT(vs3r::find_clip(settings("shared")) != vs3r::find_clip(settings("copied")));
    std::weak_ptr<Clip> kept = vs3r::find_clip(settings("shared"));
    EXPECT(!kept.expired());
    vs3r::drop_clips();
    EXPECT(kept.expired());
}

void failures_are_told_in_words() {
    for (auto [media, words] : {std::pair("dies", "ended unexpectedly"), std::pair("garbage", "makes no sense"),
                                std::pair("short", "makes no sense"), std::pair("old", "too old")}) {
        Clip clip(settings(media));
        EXPECT(has(error_of(clip), words));
        EXPECT(clip.state() == State::failed);
        EXPECT(has(clip.status(), words) && has(clip.status(), "passes through"));
        // Not asked again at once.
        EXPECT(clip.frame(0, {4, 4, Depth::byte}, nullptr) == nullptr);
    }
    Clip unwritable(settings("any"));
    try {
        unwritable.frame(0, {0, 5, Depth::byte}, nullptr);
        EXPECT(false);
    } catch (const vs3r::Error &error) {
        EXPECT(has(error.what(), "got 0x5"));
    }
}

void a_missing_bridge_is_told_in_words() {
    std::string bridge = std::getenv("VS3R_BRIDGE");
    setenv("VS3R_BRIDGE", "/nonexistent/vs3r-bridge", 1);
    Clip clip(settings("any"));
    setenv("VS3R_BRIDGE", bridge.c_str(), 1);
    EXPECT(has(error_of(clip), "cannot start /nonexistent/vs3r-bridge"));
}

void a_clip_that_was_analysed_elsewhere_is_looked_at_again() {
    std::filesystem::remove(folder / "fresh.done");
    Clip clip(settings("fresh"));
    EXPECT(clip.frame(1, {4, 4, Depth::byte}, nullptr) == nullptr);
    std::ofstream(folder / "fresh.done").flush();
    clip.reload();
    EXPECT(shows(clip.frame(1, {4, 4, Depth::byte}, nullptr), 1));
    EXPECT(clip.state() == State::ready);
}

void an_analysis_is_cancelled_at_once() {
    Clip clip(settings("endless"));
    clip.analyse();
    clip.wait(2, nullptr);
    EXPECT(has(clip.status(), "analysing: frame"));
    clip.cancel();
    EXPECT(clip.state() == State::not_analysed && has(clip.status(), "cancelled"));
    clip.analyse();
    EXPECT(clip.state() == State::analysing);
}

void a_frame_is_aborted_at_once() {
    Clip clip(settings("hangs"));
    int asked = 0;
    try {
        clip.frame(0, {4, 4, Depth::byte}, [&] { return ++asked > 3; });
        EXPECT(false);
    } catch (const vs3r::Aborted &) {
        EXPECT(asked == 4);
    }
    EXPECT(clip.state() != State::failed);
}

} // namespace

int main(int, char **arguments) {
    std::string pattern = (std::filesystem::temp_directory_path() / "vs3r-core-XXXXXX").string();
    folder = mkdtemp(pattern.data());
    setenv("FAKE_BRIDGE", folder.c_str(), 1);
    setenv("VS3R_BRIDGE", arguments[1], 1);
    an_analysis_is_asked_for_and_then_frames_come();
    a_frame_keeps_its_shape();
    a_frame_is_drawn_once();
    the_cache_is_bounded();
    frames_come_right_from_many_threads();
    equal_settings_share_a_clip_and_others_do_not();
    failures_are_told_in_words();
    a_missing_bridge_is_told_in_words();
    a_clip_that_was_analysed_elsewhere_is_looked_at_again();
    an_analysis_is_cancelled_at_once();
    a_frame_is_aborted_at_once();
    std::filesystem::remove_all(folder);
    return 0;
}
