// The engine over gRPC: found or started, and asked.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "vs3r/v1/engine.grpc.pb.h"

namespace vs3r {

struct ClipRequest {
    bool analyse = false; // Make the track where there is none.
    std::string media;
    double smoothness = 0, frame_limit = 0;
    std::string camera, fill;
};

// One connection and one session. Failures are std::runtime_error with a line for the editor.
class Engine {
public:
    // `address`: HOST:PORT or unix:PATH; empty: the engine of this user on this machine, started where there is none.
    explicit Engine(const std::string &address);

    // Frames of the clip, 0 where it is not analysed.
    std::uint64_t open(const ClipRequest &request, const std::function<void(std::uint64_t, std::uint64_t)> &progress);
    vs3r::v1::GetFrameResponse frame(std::uint64_t index);

private:
    void connect();
    void check_version();
    std::string create_session(const ClipRequest &request, bool *has_track);
    [[noreturn]] void refuse(const grpc::Status &status) const;
    void prepare(grpc::ClientContext &context, int seconds) const;

    std::string address_, token_, session_;
    bool is_own_ = false;
    std::unique_ptr<vs3r::v1::EngineService::Stub> stub_;
    std::shared_ptr<grpc::Channel> channel_;
};

} // namespace vs3r
