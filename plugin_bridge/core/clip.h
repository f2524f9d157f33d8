// A clip as the host's plugins see it: analysed or not, and its stabilized frames.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "helper.h"

namespace vs3r {

// Which frames, stabilized how. Equal settings share one Clip, whichever and how many instances ask.
struct Settings {
    std::string media;         // Path of the file; empty: the host gives the frames.
    std::string frames;        // The plugin's name for frames of the host, and what may differ between its pictures of one
    std::string variant;       // frame: size, depth and who shows it.
    std::string track;         // Name of a saved track that is used; empty: the engine's own of this clip.
    std::string track_of;      // What it was made of, as Clip::identity says; empty where that is not known.
    std::shared_ptr<const std::string> track_bytes; // The .vs3r file; what its name says.
    std::string address;       // Of the engine; empty: one of this machine, started when there is none.
    double smoothness = 0.5;   // [0, 1].
    double frame_limit = 0.7;  // Share of a picture that its own source frame must cover, [0, 1].
    std::string camera = "pinhole";
    std::string fill = "fill"; // "fill": diffusion where no neighbour saw; "none": neighbours only.

    auto key() const {
        return std::tie(media, frames, variant, track, track_of, address, smoothness, frame_limit, camera, fill);
    }
    bool operator<(const Settings &other) const {
        return key() < other.key();
    }
};

enum class Depth { byte = 1, half_word = 2 }; // Bytes a channel.

// What a host wants to fill.
struct Shape {
    int width = 0, height = 0;
    Depth depth = Depth::byte;
    double pixel_aspect = 0; // Width of one of its pixels over the height; 0: the frame is stretched to fill it all.
    bool is_upright = false; // A clip whose file says that it is turned is shown so.
    double stretch = 0;      // Share of a side by which it may be stretched to fill the shape all the same.
};

// RGBA, top row first, no gaps. Opaque where it comes from a file; else alpha is as the host's frames have it.
struct Picture {
    int width = 0, height = 0;
    Depth depth = Depth::byte;
    std::vector<std::uint8_t> bytes;
};

// A frame that the host gives: RGBA, top row first, no gaps.
struct HostFrame {
    int width = 0, height = 0;
    Depth depth = Depth::byte;
    double pixel_aspect = 1;
    bool is_premultiplied = false;
    std::uint64_t fingerprint = 0; // Of its pixels.
    std::vector<std::uint8_t> bytes;
};

// The host's frames by their numbers. Asked in the caller's thread, with no lock held; throws Error where it has none.
struct HostFrames {
    std::function<HostFrame(std::int64_t)> fetch;
    std::uint64_t shown = 0; // Fingerprint of the one whose stabilized frame is wanted.
};

// Where a frame's picture is to be sampled: nodes over the target, between them linear. Pixels of the track's pictures.
struct Warp {
    int rows = 0, columns = 0, width = 0, height = 0;
    float origin = 0, step = 0;
    std::vector<float> x, y;
};

enum class State { unknown, not_analysed, analysing, ready, failed };

// Safe to use from several threads.
class Clip {
public:
    explicit Clip(Settings settings);
    ~Clip(); // Cancels.

    // Starts the analysis in the background, unless it runs or is done.
    void analyse();
    void cancel();
    // In the caller's thread, of `count` frames of the host. `report` shows a share, and is false where the user cancels.
    void analyse_frames(std::int64_t count, double rate, double pixel_aspect,
                        const std::function<HostFrame(std::int64_t)> &fetch, const std::function<bool(double)> &report);
    // Until the analysis has ended, or `frame` frames of it are done; throws Aborted.
    void wait(std::int64_t frame, const Abort &abort);
    // After a failure, or when the file may be another or analysed elsewhere: look again.
    void reload();

    // Finds out whether it is analysed.
    void look(const Abort &abort);
    // The stabilized frame nearest to `index`, as large as it fits into a shape. Null where the clip is not analysed.
    // Throws Error and Aborted. `host`: gives the frames where no file does.
    std::shared_ptr<const Picture> frame(std::int64_t index, const Shape &shape, const Abort &abort,
                                         const HostFrames *host = nullptr);
    // For hosts that give one frame only: where it is to be sampled. Null where the clip is not analysed.
    std::shared_ptr<const Warp> warp(std::int64_t index, const Abort &abort);
    // The track as a .vs3r file, null where the clip is not analysed.
    std::shared_ptr<const std::string> track(const Abort &abort);
    // The host's frames are no longer what they were.
    void forget_frames();

    State state() const;
    // One line for the editor.
    std::string status() const;
    // Equal for equal clips, wherever they lie; empty while unknown.
    std::string identity() const;
    // Frames of the clip; 0 while unknown.
    std::int64_t frames() const;
    // Of the analysis, [0, 1].
    double progress() const;

    // A clip keeps at most this many bytes of finished pictures.
    static constexpr std::size_t kCacheBytes = std::size_t{256} << 20;

private:
    using Key = std::tuple<std::int64_t, std::uint64_t, int, int, Depth, double, bool, double>;

    // Who tells how the clip is.
    enum class Teller { analysis, frames };

    void send_open(Helper &helper, bool analyse, const std::string &generation, const Abort &abort) const;
    void begin_analysis();
    std::unique_lock<std::timed_mutex> lock_frames(const Abort &abort);
    void forget();
    void run_analysis();
    bool open(const Abort &abort);
    bool is_waiting() const;
    [[noreturn]] void fail(const std::exception &error);
    void become_ready(Teller teller, const std::vector<std::string> &answer);
    std::shared_ptr<const Picture> receive_picture(const std::vector<std::string> &answer, const Shape &shape,
                                                   const Abort &abort);
    void send_missing(const std::vector<std::string> &answer, const HostFrames &host, std::int64_t shown, bool again,
                      const Abort &abort);
    void forget_changed(std::int64_t index, std::uint64_t fingerprint);
    void settle(Teller teller, State state, const std::string &status);
    bool counts(Teller teller) const;
    std::shared_ptr<const Picture> cached(const Key &key);
    void keep(const Key &key, std::shared_ptr<const Picture> picture);

    const Settings settings_;
    mutable std::mutex state_lock_;
    State state_ = State::unknown;
    std::string status_ = "not looked at yet", identity_;
    std::int64_t done_ = 0, total_ = 0;
    bool cancelled_ = false;
    std::chrono::steady_clock::time_point settled_at_;
    std::thread analysis_;
    std::string generation_; // Of what the engine is asked for: another one when a track or the host's frames may be.

    std::timed_mutex frames_lock_; // Held while the engine is asked for a frame; taken before state_lock_.
    Helper frames_helper_;
    bool is_open_ = false;
    std::string opened_; // The generation that was opened last; under both locks.
    std::list<std::pair<Key, std::shared_ptr<const Picture>>> cache_; // Newest first; under state_lock_.
    std::size_t cache_bytes_ = 0;
    std::map<std::int64_t, std::uint64_t> sent_; // Fingerprints of the host's frames; under state_lock_.
};

// What the bridge answered where it should not have: its error, or that it makes no sense.
[[noreturn]] void refuse(const std::vector<std::string> &answer);
// A whole number of an answer.
std::int64_t number(const std::vector<std::string> &fields, std::size_t at);
// That nothing else has.
std::string random_name();
// Digits that mean the same in every locale.
std::string text_of(double value);

// The clip of these settings. It lives while someone holds it, and the last few a little longer: hosts make instances
// anew at every edit.
std::shared_ptr<Clip> find_clip(const Settings &settings);
// Before the library is unloaded: those that nobody holds end now.
void drop_clips();

} // namespace vs3r
