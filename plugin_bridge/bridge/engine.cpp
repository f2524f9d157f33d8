#include "engine.h"

#include <grpcpp/grpcpp.h>

#include <fstream>
#include <stdexcept>

#include "launch.h"
#include "media_key.h"

namespace vs3r {
namespace {

namespace pb = vs3r::v1;

constexpr int kCallS = 60;
// A frame far from the last one: the file is decoded from its beginning.
constexpr int kFrameS = 600;
constexpr int kReachS = 5;
constexpr int kStartS = 60;
constexpr int kOldestMajor = 0, kOldestMinor = 1;

std::string token() {
    const char *file = std::getenv("VS3R_TOKEN_FILE");
    if (file == nullptr) return "";
    std::ifstream stream(file);
    std::string text;
    if (!(stream >> text)) throw std::runtime_error(std::string("cannot read the token file ") + file + "; check it");
    return text;
}

std::chrono::system_clock::time_point in_seconds(int seconds) {
    return std::chrono::system_clock::now() + std::chrono::seconds(seconds);
}

} // namespace

Engine::Engine(const std::string &address) : address_(address), token_(token()), is_own_(address.empty()) {
    if (is_own_) address_ = "unix:" + own_socket();
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    channel_ = grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
    stub_ = pb::EngineService::NewStub(channel_);
    connect();
    check_version();
}

void Engine::connect() {
    if (is_own_) {
        // Beside a leftover socket file nobody listens: one second tells.
        if (channel_->WaitForConnected(in_seconds(1))) return;
        start_engine(own_socket());
        if (channel_->WaitForConnected(in_seconds(kStartS))) return;
        throw std::runtime_error("the engine did not start within a minute; run `vs3r serve` in a terminal to see why");
    }
    if (!channel_->WaitForConnected(in_seconds(kReachS)))
        throw std::runtime_error("cannot reach the engine at " + address_ + "; start `vs3r serve` there, or clear the "
                                 "engine address");
}

void Engine::prepare(grpc::ClientContext &context, int seconds) const {
    if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
    if (seconds > 0) context.set_deadline(in_seconds(seconds));
}

void Engine::refuse(const grpc::Status &status) const {
    switch (status.error_code()) {
    case grpc::StatusCode::UNIMPLEMENTED:
        throw std::runtime_error("the engine is too old for this plugin; install a newer vs3r and start it anew");
    case grpc::StatusCode::UNAVAILABLE:
        throw std::runtime_error("the engine at " + address_ + " has gone; it is looked for again in a few seconds");
    case grpc::StatusCode::DEADLINE_EXCEEDED:
        throw std::runtime_error("the engine at " + address_ + " gave no answer in time; see whether it is busy");
    default:
        throw std::runtime_error("the engine refused: " + status.error_message());
    }
}

void Engine::check_version() {
    grpc::ClientContext context;
    prepare(context, kCallS);
    pb::GetCapabilitiesResponse response;
    grpc::Status status = stub_->GetCapabilities(&context, pb::GetCapabilitiesRequest(), &response);
    if (!status.ok()) refuse(status);
    int major = -1, minor = -1;
    if (std::sscanf(response.version().c_str(), "%d.%d", &major, &minor) != 2 ||
        std::make_pair(major, minor) < std::make_pair(kOldestMajor, kOldestMinor))
        throw std::runtime_error("expected an engine of version 0.1 or newer, got '" + response.version() +
                                 "'; install a newer vs3r and start it anew");
    if (!response.file_paths())
        throw std::runtime_error("the engine at " + address_ + " reads no files; start it with --media-root /");
}

std::string Engine::create_session(const ClipRequest &request, bool *has_track) {
    pb::CreateSessionRequest create;
    create.set_media_key(media_key(request.media));
    pb::Config *config = create.mutable_config();
    config->mutable_smooth()->set_smoothness(request.smoothness);
    config->mutable_smooth()->set_min_own_share(request.frame_limit);
    config->mutable_render()->set_camera(request.camera);
    config->mutable_refine()->set_backend(request.fill);
    grpc::ClientContext context;
    prepare(context, kCallS);
    pb::CreateSessionResponse response;
    grpc::Status status = stub_->CreateSession(&context, create, &response);
    if (!status.ok()) refuse(status);
    *has_track = !response.session().track().empty();
    return response.session().name();
}

std::uint64_t Engine::open(const ClipRequest &request,
                           const std::function<void(std::uint64_t, std::uint64_t)> &progress) {
    bool has_track = false;
    session_ = create_session(request, &has_track);
    if (!has_track && !request.analyse) return 0;
    // Also with a track: it tells the session which file holds the frames.
    grpc::ClientContext context;
    prepare(context, 0);
    auto call = stub_->Analyze(&context);
    pb::AnalyzeRequest message;
    message.mutable_config()->set_session(session_);
    message.mutable_config()->set_path(request.media.substr(request.media.find_first_not_of('/')));
    call->Write(message);
    call->WritesDone();
    std::uint64_t frames = 0;
    pb::AnalyzeResponse response;
    while (call->Read(&response)) {
        if (response.has_progress()) progress(response.progress().frames(), response.progress().total_frames());
        if (response.has_analysis()) frames = response.analysis().frame_count();
    }
    grpc::Status status = call->Finish();
    if (!status.ok()) refuse(status);
    return frames;
}

pb::GetFrameResponse Engine::frame(std::uint64_t index) {
    grpc::ClientContext context;
    prepare(context, kFrameS);
    pb::GetFrameRequest request;
    request.set_session(session_);
    request.set_index(index);
    pb::GetFrameResponse response;
    grpc::Status status = stub_->GetFrame(&context, request, &response);
    if (!status.ok()) refuse(status);
    return response;
}

} // namespace vs3r
