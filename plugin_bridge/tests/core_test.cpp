// The core against a stand-in for the bridge: core_test FAKE_BRIDGE.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
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
#include "track.h"

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
    auto picture = clip.frame(3, {4, 2, Depth::half_word}, nullptr);
    EXPECT(shows(picture, 3) && picture->bytes.size() == 2 * 4 * 4 * 2);
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
    for (int frame : {0, 1, 2, 3, 4, 0, 4}) EXPECT(clip.frame(frame, {4096, 2048, Depth::half_word}, nullptr) != nullptr);
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

void files_of_the_host_are_not_the_bridge_s() {
    int ends[2];
    EXPECT(pipe(ends) == 0 && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    Clip clip(settings("any"));
    EXPECT(shows(clip.frame(0, {4, 4}, nullptr), 0));
    close(ends[1]);
    // At its end: nobody can write any more.
    char byte;
    EXPECT(read(ends[0], &byte, 1) == 0);
    close(ends[0]);
}

void a_clip_that_was_analysed_elsewhere_is_looked_at_again() {
    std::filesystem::remove(folder / "fresh.done");
    Clip clip(settings("fresh"));
    EXPECT(clip.frame(1, {4, 4, Depth::byte}, nullptr) == nullptr);
    std::ofstream(folder / "fresh.done").flush();
    clip.reload();
    EXPECT(shows(clip.frame(1, {4, 4, Depth::byte}, nullptr), 1));
    EXPECT(clip.state() == State::ready);
    // Also where it was ready before: the file may be another.
    clip.reload();
    int opened = lines("started"), drawn = lines("drawn", "1");
    EXPECT(shows(clip.frame(1, {4, 4, Depth::byte}, nullptr), 1));
    EXPECT(clip.state() == State::ready && has(clip.status(), "analysed"));
    EXPECT(lines("started") == opened + 1 && lines("drawn", "1") == drawn + 1);
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

// Opened before the analysis began: what the frames' bridge says then is old.
void an_opening_that_is_overtaken_by_an_analysis_tells_nothing() {
    auto allow = [](const char *what) { std::ofstream(folder / what).flush(); };
    for (bool is_analysed_first : {false, true}) {
        for (const char *name : {"started", "held.opened", "held.analysed", "held.done"})
            std::filesystem::remove(folder / name);
        Clip clip(settings("held"));
        std::thread opening([&] { EXPECT(clip.frame(3, {4, 2, Depth::byte}, nullptr) == nullptr); });
        while (lines("started", "0 held") == 0) std::this_thread::yield();
        clip.analyse();
        if (is_analysed_first) {
            allow("held.analysed");
            clip.wait(1 << 20, nullptr);
            // As the engine has answered it before.
            std::filesystem::remove(folder / "held.done");
        }
        allow("held.opened");
        opening.join();
        EXPECT(clip.state() == (is_analysed_first ? State::ready : State::analysing));
        // Nor does it hang.
        clip.analyse();
        allow("held.analysed");
        allow("held.done");
        clip.wait(1 << 20, nullptr);
        EXPECT(clip.state() == State::ready);
        EXPECT(shows(clip.frame(3, {4, 2, Depth::byte}, nullptr), 3));
    }
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

// Neither a host's thread that drops frames nor one whose render is no longer wanted.
void nobody_waits_for_a_frame_of_another_thread() {
    Clip clip(settings("hangs"));
    std::atomic<bool> is_over = false;
    std::atomic<int> asked = 0;
    auto abort = [&] { return is_over || ++asked > 250; };
    std::thread drawing([&] {
        try {
            clip.frame(0, {4, 4}, abort);
            EXPECT(false);
        } catch (const vs3r::Aborted &) {
        }
    });
    while (clip.state() != State::ready) std::this_thread::yield();
    clip.forget_frames();
    try {
        clip.frame(1, {4, 4}, [] { return true; });
        EXPECT(false);
    } catch (const vs3r::Aborted &) {
    }
    EXPECT(asked < 250);
    is_over = true;
    drawing.join();
}

vs3r::HostFrame host_frame(std::int64_t index) {
    vs3r::HostFrame frame;
    frame.width = frame.height = 2;
    frame.fingerprint = 1000 + static_cast<std::uint64_t>(index);
    frame.bytes.assign(16, static_cast<std::uint8_t>(100 + index));
    return frame;
}

Settings of_host(const std::string &frames) {
    Settings result;
    result.frames = frames;
    return result;
}

void frames_of_the_host_are_sent_once() {
    Clip clip(of_host("host"));
    std::vector<std::int64_t> fetched;
    auto fetch = [&](std::int64_t index) {
        fetched.push_back(index);
        return host_frame(index);
    };
    auto wanted = [&](std::int64_t index, std::uint64_t shown) {
        vs3r::HostFrames host{fetch, shown};
        return clip.frame(index, {4, 4, Depth::byte}, nullptr, &host);
    };
    EXPECT(shows(wanted(5, 1005), 105));
    EXPECT((fetched == std::vector<std::int64_t>{4, 5, 6}));
    EXPECT(shows(wanted(5, 1005), 105) && shows(wanted(7, 1007), 107));
    EXPECT(lines("pushed", "6") == 1);
    // It is another picture than the one that was sent.
    EXPECT(shows(wanted(7, 9), 107));
    EXPECT(lines("pushed", "6") == 2);
    clip.forget_frames();
    EXPECT(shows(wanted(7, 1007), 107) && lines("pushed", "6") == 3);
}

// Two renders of one frame at once, between which something before the effect was changed.
void each_render_gets_the_frames_that_it_was_given() {
    Clip clip(of_host("host"));
    auto changed = [](std::int64_t index) {
        vs3r::HostFrame frame = host_frame(index);
        frame.fingerprint += 1000;
        frame.bytes.assign(16, static_cast<std::uint8_t>(200 + index));
        return frame;
    };
    vs3r::HostFrames after{changed, 2005};
    bool is_changed = false;
    auto fetch = [&](std::int64_t index) {
        if (!std::exchange(is_changed, true)) EXPECT(shows(clip.frame(5, {4, 4}, nullptr, &after), 205));
        return host_frame(index);
    };
    vs3r::HostFrames before{fetch, 1005};
    EXPECT(shows(clip.frame(5, {4, 4}, nullptr, &before), 105));
    EXPECT(is_changed && shows(clip.frame(5, {4, 4}, nullptr, &after), 205));
}

void what_the_host_cannot_give_is_told_in_words() {
    Clip clip(of_host("host nothing"));
    vs3r::HostFrames host{[](std::int64_t) -> vs3r::HostFrame { throw vs3r::Error("no such frame"); }, 0};
    try {
        clip.frame(5, {4, 4, Depth::byte}, nullptr, &host);
        EXPECT(false);
    } catch (const vs3r::Error &error) {
        EXPECT(has(error.what(), "no such frame"));
    }
    Clip forgetful(of_host("forgetful"));
    vs3r::HostFrames good{host_frame, 0};
    try {
        forgetful.frame(5, {4, 4, Depth::byte}, nullptr, &good);
        EXPECT(false);
    } catch (const vs3r::Error &error) {
        EXPECT(has(error.what(), "--memory-mb"));
    }
}

void an_analysis_of_frames_is_made_and_cancelled() {
    Clip clip(of_host("host"));
    double last = -1;
    auto report = [&](double share) {
        EXPECT(share >= last && share <= 1);
        last = share;
        return true;
    };
    clip.analyse_frames(12, 25, 1, host_frame, report);
    EXPECT(clip.state() == State::ready && clip.frames() == 12 && clip.identity() == "content of frames");
    clip.analyse_frames(12, 25, 1, host_frame, [](double share) { return share < 0.5; });
    EXPECT(clip.state() == State::not_analysed && has(clip.status(), "cancelled"));
    auto fails = [](std::int64_t index) { return index < 3 ? host_frame(index) : throw vs3r::Error("lost"); };
    clip.analyse_frames(12, 25, 1, fails, [](double) { return true; });
    EXPECT(clip.state() == State::failed && has(clip.status(), "lost") && has(clip.status(), "passes through"));
}

void a_track_and_a_warp_are_got() {
    Clip clip(settings("tracked"));
    EXPECT(*clip.track(nullptr) == "track");
    auto warp = clip.warp(4, nullptr);
    EXPECT(warp->rows == 2 && warp->columns == 3 && warp->width == 96 && warp->height == 64);
    EXPECT(warp->origin == -4 && warp->step == 8 && warp->x[5] == 5 && warp->y[0] == 6);
    Clip fresh(settings("endless"));
    std::filesystem::remove(folder / "endless.done");
    EXPECT(fresh.track(nullptr) == nullptr && fresh.warp(0, nullptr) == nullptr);
    for (const char *media : {"dies", "garbage"}) {
        Clip broken(settings(media));
        try {
            broken.warp(1, nullptr);
            EXPECT(false);
        } catch (const vs3r::Error &error) {
            EXPECT(has(broken.status(), "passes through"));
        }
    }
}

void a_saved_track_survives_being_written() {
    vs3r::SavedTrack track;
    track.name = "frames-1";
    track.first = 1001.5;
    for (int size = 0; size < 9; ++size) {
        track.signatures += static_cast<char>(250 + size);
        track.bytes = std::make_shared<const std::string>(track.signatures.rbegin(), track.signatures.rend());
        auto read = vs3r::read_track(vs3r::written(track));
        EXPECT(read != nullptr && read->name == track.name && read->of.empty() && read->first == track.first);
        EXPECT(read->signatures == track.signatures && *read->bytes == *track.bytes);
    }
    track.bytes = nullptr;
    EXPECT(vs3r::read_track(vs3r::written(track))->bytes == nullptr);
    for (const char *wrong : {"", "vs3r1", "vs3r2 a b 1 - -", "vs3r1 a b c - -", "vs3r1 a b 1 ?? -"})
        EXPECT(vs3r::read_track(wrong) == nullptr);
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
    files_of_the_host_are_not_the_bridge_s();
    a_clip_that_was_analysed_elsewhere_is_looked_at_again();
    an_analysis_is_cancelled_at_once();
    an_opening_that_is_overtaken_by_an_analysis_tells_nothing();
    a_frame_is_aborted_at_once();
    nobody_waits_for_a_frame_of_another_thread();
    frames_of_the_host_are_sent_once();
    each_render_gets_the_frames_that_it_was_given();
    what_the_host_cannot_give_is_told_in_words();
    an_analysis_of_frames_is_made_and_cancelled();
    a_track_and_a_warp_are_got();
    a_saved_track_survives_being_written();
    std::filesystem::remove_all(folder);
    return 0;
}
