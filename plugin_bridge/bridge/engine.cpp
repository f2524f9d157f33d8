#include "engine.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/grpcpp.h>

#include <cmath>
#include <fstream>
#include <stdexcept>

#include "launch.h"
#include "media_key.h"
#include "picture.h"

namespace vs3r {
namespace {

namespace pb = vs3r::v1;

constexpr int kCallS = 60;
// A frame far from the last one: the file is decoded from its beginning.
constexpr int kFrameS = 600;
constexpr int kReachS = 5;
constexpr int kStartS = 180;
constexpr std::size_t kChunk = 1 << 20;
// What a pixel's shape may differ where a saved track and the host round it differently.
constexpr double kShape = 0.02;
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

pb::Rational rational(std::int64_t numerator, std::int64_t denominator) {
    pb::Rational result;
    result.set_numerator(numerator);
    result.set_denominator(denominator);
    return result;
}

// Seconds of a frame: of whole rates and of those of television exactly.
pb::Rational frame_time(double rate) {
    if (!(rate > 0)) rate = 25;
    for (std::int64_t part : {1000, 1001}) {
        double whole = rate * static_cast<double>(part) / 1000;
        if (std::abs(whole - std::round(whole)) < 1e-3 && whole >= 1) return rational(part, std::llround(whole) * 1000);
    }
    return rational(1000, std::max(std::llround(rate * 1000), 1LL));
}

pb::FrameFormat format_of(const HostPicture &picture, const pb::Rational &pixel_aspect) {
    pb::FrameFormat format;
    format.set_pixel_format(picture.bytes == 1 ? pb::PIXEL_FORMAT_RGBA8 : pb::PIXEL_FORMAT_RGBA16);
    format.set_width(static_cast<std::uint32_t>(picture.width));
    format.set_height(static_cast<std::uint32_t>(picture.height));
    format.set_alpha_mode(picture.is_premultiplied ? pb::ALPHA_MODE_PREMULTIPLIED : pb::ALPHA_MODE_STRAIGHT);
    format.mutable_color_space()->set_full_range(true);
    *format.mutable_pixel_aspect() = pixel_aspect;
    return format;
}

// The MissingFrames among an error's details, which are a google.rpc.Status; its own proto is not installed everywhere.
Ranges missing_frames(const grpc::Status &status) {
    constexpr int kDetails = 3;
    Ranges ranges;
    google::protobuf::Empty about;
    if (!about.ParseFromString(status.error_details())) return ranges;
    const google::protobuf::UnknownFieldSet &fields = about.GetReflection()->GetUnknownFields(about);
    for (int i = 0; i < fields.field_count(); ++i) {
        const google::protobuf::UnknownField &field = fields.field(i);
        if (field.number() != kDetails || field.type() != google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) continue;
        google::protobuf::Any detail;
        pb::MissingFrames missing;
        if (!detail.ParseFromString(field.length_delimited()) || !detail.UnpackTo(&missing)) continue;
        for (const pb::FrameRange &range : missing.ranges()) ranges.emplace_back(range.first(), range.last());
    }
    return ranges;
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
        std::string program = start_engine(own_socket());
        for (int waited_s = 0; waited_s < kStartS; ++waited_s) {
            if (channel_->WaitForConnected(in_seconds(1))) return;
            if (!is_engine_kept(own_socket()))
                throw std::runtime_error("the engine ended at once; run `" + program + " serve` in a terminal to see why");
        }
        throw std::runtime_error("the engine did not start within three minutes; run `" + program +
                                 " serve` in a terminal to see why");
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
    case grpc::StatusCode::NOT_FOUND:
        throw SessionGone("the engine refused: " + status.error_message());
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
    reads_files_ = response.file_paths();
}

std::string Engine::create_session(const ClipRequest &request, const std::string &key, bool *has_track) {
    pb::CreateSessionRequest create;
    create.set_media_key(key);
    if (!request.camera.empty()) {
        pb::Config *config = create.mutable_config();
        config->mutable_smooth()->set_smoothness(request.smoothness);
        config->mutable_smooth()->set_min_own_share(request.frame_limit);
        config->mutable_render()->set_camera(request.camera);
        config->mutable_refine()->set_backend(request.fill);
    }
    grpc::ClientContext context;
    prepare(context, kCallS);
    pb::CreateSessionResponse response;
    grpc::Status status = stub_->CreateSession(&context, create, &response);
    if (!status.ok()) refuse(status);
    *has_track = !response.session().track().empty();
    return response.session().name();
}

std::uint64_t Engine::open(const ClipRequest &request, const Progress &progress) {
    return request.media.empty() ? open_frames(request) : open_file(request, progress);
}

std::uint64_t Engine::open_file(const ClipRequest &request, const Progress &progress) {
    if (!reads_files_)
        throw std::runtime_error("the engine at " + address_ + " reads no files; start it with --media-root /");
    identity_ = media_key(request.media);
    // A track that was made of another clip came along with a copied effect: it is not this clip's.
    bool is_given = !request.track.empty() && (request.track_of.empty() || request.track_of == identity_);
    bool has_track = false;
    session_ = create_session(request, is_given ? identity_ + "+" + request.track : identity_, &has_track);
    if (is_given && !has_track) {
        upload(request.track_bytes);
        has_track = true;
    }
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
        if (!response.has_analysis()) continue;
        frames = response.analysis().frame_count();
        int rotation_deg = static_cast<int>(response.analysis().rotation_deg() % 360);
        rotation_deg_ = rotation_deg % 90 == 0 ? rotation_deg : 0;
    }
    grpc::Status status = call->Finish();
    if (!status.ok()) refuse(status);
    return frames;
}

// The session is this host's own: no other program's frames may get into it. So it gets a copy of the track.
std::uint64_t Engine::open_frames(const ClipRequest &request) {
    identity_ = request.frames;
    std::string track = request.track_bytes;
    bool has_track = false;
    if (track.empty()) {
        std::string made = create_session(request, request.frames, &has_track);
        if (!has_track) return 0;
        track = track_of(made);
    }
    info_ = track_info(track);
    session_ = create_session(request, request.frames + "@" + request.generation, &has_track);
    if (!has_track) upload(track);
    return info_.pts.size();
}

void Engine::upload(const std::string &track) {
    grpc::ClientContext context;
    prepare(context, kCallS);
    pb::UploadTrackResponse response;
    auto call = stub_->UploadTrack(&context, &response);
    pb::UploadTrackRequest message;
    message.mutable_config()->set_session(session_);
    bool is_open = call->Write(message);
    for (std::size_t at = 0; is_open && at < track.size(); at += kChunk) {
        message.set_chunk(track.substr(at, kChunk));
        is_open = call->Write(message);
    }
    call->WritesDone();
    grpc::Status status = call->Finish();
    if (!status.ok()) refuse(status);
}

std::string Engine::track_of(const std::string &session) const {
    grpc::ClientContext context;
    prepare(context, kCallS);
    pb::DownloadTrackRequest request;
    request.set_session(session);
    auto call = stub_->DownloadTrack(&context, request);
    std::string track;
    pb::DownloadTrackResponse response;
    while (call->Read(&response)) track += response.chunk();
    grpc::Status status = call->Finish();
    if (!status.ok()) refuse(status);
    return track;
}

std::unique_ptr<pb::GetFrameResponse> Engine::frame(std::uint64_t index, Ranges *missing) {
    grpc::ClientContext context;
    prepare(context, kFrameS);
    pb::GetFrameRequest request;
    request.set_session(session_);
    request.set_index(index);
    auto response = std::make_unique<pb::GetFrameResponse>();
    grpc::Status status = stub_->GetFrame(&context, request, response.get());
    if (status.ok()) return response;
    *missing = missing_frames(status);
    if (missing->empty()) refuse(status);
    return nullptr;
}

pb::GetWarpResponse Engine::warp(std::uint64_t index) {
    grpc::ClientContext context;
    prepare(context, kFrameS);
    pb::GetWarpRequest request;
    request.set_session(session_);
    request.set_index(index);
    request.set_map_only(true);
    pb::GetWarpResponse response;
    grpc::Status status = stub_->GetWarp(&context, request, &response);
    if (!status.ok()) refuse(status);
    return response;
}

void Engine::push(HostPicture picture) {
    if (picture.index >= info_.pts.size())
        throw std::runtime_error("expected one of the track's " + std::to_string(info_.pts.size()) + " frames");
    // Pixels may be of any shape, the whole may not.
    double ours = static_cast<double>(info_.width) * static_cast<double>(info_.pixel_aspect.first) /
                  static_cast<double>(info_.pixel_aspect.second) / info_.height;
    double theirs = static_cast<double>(picture.width) / picture.height;
    double stretch = theirs / ours * picture.pixel_aspect;
    if (std::abs(std::log(stretch)) > kShape)
        throw std::runtime_error("the track is of pictures of " + std::to_string(info_.width) + "x" +
                                 std::to_string(info_.height) + ", the host's have another shape: " +
                                 std::to_string(picture.width) + "x" + std::to_string(picture.height) +
                                 "; take the track of this clip, or analyse it");
    resize(picture.pixels, picture.width, picture.height, picture.bytes, info_.width, info_.height);
    picture.width = info_.width;
    picture.height = info_.height;
    grpc::ClientContext context;
    prepare(context, kCallS);
    pb::UploadFramesResponse response;
    auto call = stub_->UploadFrames(&context, &response);
    pb::UploadFramesRequest message;
    message.mutable_config()->set_session(session_);
    pb::FrameSource *source = message.mutable_config()->mutable_frames();
    *source->mutable_format() =
        format_of(picture, rational(info_.pixel_aspect.first, info_.pixel_aspect.second));
    *source->mutable_time_base() = rational(info_.time_base.first, info_.time_base.second);
    bool is_open = call->Write(message);
    pb::Frame *frame = message.mutable_frame();
    frame->set_sequence(picture.index);
    frame->set_pts(info_.pts[picture.index]);
    frame->set_data(std::move(picture.pixels));
    if (is_open) call->Write(message);
    call->WritesDone();
    grpc::Status status = call->Finish();
    if (!status.ok()) refuse(status);
    if (response.frame_errors_size() > 0)
        throw std::runtime_error("the engine refused: " + response.frame_errors(0).message());
}

void Engine::begin_analysis(const std::string &frames, double rate, double pixel_aspect) {
    bool has_track = false;
    session_ = create_session(ClipRequest(), frames, &has_track); // Only analysis counts, which has no settings here.
    identity_ = frames;
    analysis_ = std::make_unique<Analysis>();
    analysis_->pixel_aspect = pixel_aspect > 0 ? pixel_aspect : 1;
    analysis_->time_base = frame_time(rate);
    prepare(analysis_->context, 0);
    analysis_->stream = stub_->Analyze(&analysis_->context);
}

// One answer of the engine; false at the end.
bool Engine::read_analysis() {
    pb::AnalyzeResponse response;
    if (!analysis_->stream->Read(&response)) return false;
    analysis_->credit += response.credit().frames();
    if (response.has_analysis()) analysis_->frames = response.analysis().frame_count();
    if (response.has_frame_error())
        throw std::runtime_error("the engine refused a frame: " + response.frame_error().message());
    return true;
}

void Engine::push_analysis(HostPicture picture) {
    if (analysis_ == nullptr) throw std::runtime_error("the plugin's request makes no sense; install both anew");
    pb::AnalyzeRequest message;
    bool is_open = true;
    if (picture.index == 0) {
        message.mutable_config()->set_session(session_);
        message.mutable_config()->set_explicit_end(true);
        pb::FrameSource *source = message.mutable_config()->mutable_frames();
        *source->mutable_format() = format_of(picture, rational(std::llround(analysis_->pixel_aspect * 10000), 10000));
        *source->mutable_time_base() = analysis_->time_base;
        is_open = analysis_->stream->Write(message);
    }
    while (is_open && analysis_->credit == 0) is_open = read_analysis();
    pb::Frame *frame = message.mutable_frame();
    frame->set_sequence(picture.index);
    frame->set_pts(static_cast<std::int64_t>(picture.index));
    frame->set_duration(1);
    frame->set_data(std::move(picture.pixels));
    if (is_open && analysis_->stream->Write(message)) {
        --analysis_->credit;
        return;
    }
    grpc::Status status = analysis_->stream->Finish();
    analysis_.reset();
    refuse(status);
}

std::uint64_t Engine::finish_analysis() {
    if (analysis_ == nullptr) throw std::runtime_error("the plugin's request makes no sense; install both anew");
    pb::AnalyzeRequest message;
    message.mutable_end();
    analysis_->stream->Write(message);
    analysis_->stream->WritesDone();
    while (read_analysis()) {}
    grpc::Status status = analysis_->stream->Finish();
    std::uint64_t frames = analysis_->frames;
    analysis_.reset();
    if (!status.ok()) refuse(status);
    return frames;
}

} // namespace vs3r
