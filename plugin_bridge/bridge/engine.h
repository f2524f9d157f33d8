// The engine over gRPC: found or started, and asked.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "track_info.h"
#include "vs3r/v1/engine.grpc.pb.h"

namespace vs3r {

struct ClipRequest {
    bool analyse = false; // Make the track where there is none.
    std::string media;
    double smoothness = 0, frame_limit = 0;
    std::string camera, fill;
    // Where the host gives the frames, `media` is empty: their name, and what to add to it for a session of this host's own.
    std::string frames, generation;
    // A saved track: its name, what it was made of (empty: not known), its bytes where they are at hand.
    std::string track, track_of, track_bytes;
};

// A picture from the host: RGBA with 1 or 2 bytes a channel.
struct HostPicture {
    std::uint64_t index = 0;
    int width = 0, height = 0, bytes = 1;
    double pixel_aspect = 1;
    bool is_premultiplied = false;
    std::string pixels;
};

using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

// The engine does not know the session any more: it was idle for long, or the engine is another.
struct SessionGone : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// One connection and one session. Failures are std::runtime_error with a line for the editor.
class Engine {
public:
    // `address`: HOST:PORT or unix:PATH; empty: the engine of this user on this machine, started where there is none.
    explicit Engine(const std::string &address);

    // Frames of the clip, 0 where it is not analysed.
    std::uint64_t open(const ClipRequest &request, const std::function<void(std::uint64_t, std::uint64_t)> &progress);
    // What the clip is known by: `media`'s content, or the host's name for its frames.
    const std::string &identity() const { return identity_; }
    // Clockwise, by which a file's pictures are to be shown: 0, 90, 180 or 270.
    int rotation_deg() const { return rotation_deg_; }
    // Null where source frames are missing: those in `missing`.
    std::unique_ptr<vs3r::v1::GetFrameResponse> frame(std::uint64_t index, Ranges *missing);
    vs3r::v1::GetWarpResponse warp(std::uint64_t index);
    std::string track() const { return track_of(session_); }
    // Of the frames' track, once one was opened without a file.
    const TrackInfo &info() const { return info_; }

    // Frames for `frame`, scaled to the track's size.
    void push(HostPicture picture);
    // An analysis of frames of the host: frames one by one, and the end; gives their count.
    void begin_analysis(const std::string &frames, double rate, double pixel_aspect);
    void push_analysis(HostPicture picture);
    std::uint64_t finish_analysis();

private:
    using Progress = std::function<void(std::uint64_t, std::uint64_t)>;
    using AnalyzeStream = grpc::ClientReaderWriter<vs3r::v1::AnalyzeRequest, vs3r::v1::AnalyzeResponse>;
    struct Analysis {
        grpc::ClientContext context;
        std::unique_ptr<AnalyzeStream> stream;
        std::uint64_t credit = 0, frames = 0;
        double pixel_aspect = 1;
        vs3r::v1::Rational time_base;
    };

    void connect();
    void check_version();
    std::string create_session(const ClipRequest &request, const std::string &key, bool *has_track);
    std::uint64_t open_file(const ClipRequest &request, const Progress &progress);
    std::uint64_t open_frames(const ClipRequest &request);
    void upload(const std::string &track);
    std::string track_of(const std::string &session) const;
    bool read_analysis();
    [[noreturn]] void refuse(const grpc::Status &status) const;
    void prepare(grpc::ClientContext &context, int seconds) const;

    std::string address_, token_, session_, identity_;
    int rotation_deg_ = 0;
    TrackInfo info_;
    std::unique_ptr<Analysis> analysis_;
    bool reads_files_ = false;
    bool is_own_ = false;
    std::unique_ptr<vs3r::v1::EngineService::Stub> stub_;
    std::shared_ptr<grpc::Channel> channel_;
};

} // namespace vs3r
