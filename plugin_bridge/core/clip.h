// A clip as the host's plugins see it: analysed or not, and its stabilized frames.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
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
    std::string media;         // Path of the file.
    std::string address;       // Of the engine; empty: one of this machine, started when there is none.
    double smoothness = 0.5;   // [0, 1].
    double frame_limit = 0.7;  // Share of a picture that its own source frame must cover, [0, 1].
    std::string camera = "pinhole";
    std::string fill = "fill"; // "fill": diffusion where no neighbour saw; "none": neighbours only.

    bool operator<(const Settings &other) const {
        return std::tie(media, address, smoothness, frame_limit, camera, fill) <
               std::tie(other.media, other.address, other.smoothness, other.frame_limit, other.camera, other.fill);
    }
};

enum class Depth { byte = 1, half_word = 2, single = 4 }; // Bytes a channel: uint8, uint16, float.

// What a host wants to fill.
struct Shape {
    int width = 0, height = 0;
    Depth depth = Depth::byte;
    double pixel_aspect = 0; // Width of one of its pixels over the height; 0: the frame is stretched to fill it all.
};

// RGBA, straight alpha, top row first, no gaps.
struct Picture {
    int width = 0, height = 0;
    Depth depth = Depth::byte;
    std::vector<std::uint8_t> bytes;
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
    // Until the analysis has ended, or `frame` frames of it are done; throws Aborted.
    void wait(std::int64_t frame, const Abort &abort);
    // After a failure, or when the file may have been analysed elsewhere: look again.
    void reload();

    // The stabilized frame nearest to `index`, as large as it fits into a shape. Null where the clip is not analysed.
    // Throws Error and Aborted.
    std::shared_ptr<const Picture> frame(std::int64_t index, const Shape &shape, const Abort &abort);

    State state() const;
    // One line for the editor.
    std::string status() const;
    // Frames of the clip; 0 while unknown.
    std::int64_t frames() const;
    // Of the analysis, [0, 1].
    double progress() const;

    // A clip keeps at most this many bytes of finished pictures.
    static constexpr std::size_t kCacheBytes = std::size_t{256} << 20;

private:
    using Key = std::tuple<std::int64_t, int, int, Depth, double>;

    std::vector<std::string> open_request(bool analyse) const;
    void run_analysis();
    bool open(const Abort &abort);
    void settle(State state, const std::string &status);
    std::shared_ptr<const Picture> cached(const Key &key);
    void keep(const Key &key, std::shared_ptr<const Picture> picture);

    const Settings settings_;
    mutable std::mutex state_lock_;
    State state_ = State::unknown;
    std::string status_ = "not looked at yet";
    std::int64_t done_ = 0, total_ = 0;
    bool cancelled_ = false;
    std::chrono::steady_clock::time_point settled_at_;
    std::thread analysis_;

    std::mutex frames_lock_; // Held while the engine is asked for a frame; taken before state_lock_.
    Helper frames_helper_;
    bool opened_ = false;
    std::list<std::pair<Key, std::shared_ptr<const Picture>>> cache_; // Newest first; under state_lock_.
    std::size_t cache_bytes_ = 0;
};

// The clip of these settings. It lives while someone holds it, and the last few a little longer: hosts make instances
// anew at every edit.
std::shared_ptr<Clip> find_clip(const Settings &settings);
// Before the library is unloaded: those that nobody holds end now.
void drop_clips();

} // namespace vs3r
