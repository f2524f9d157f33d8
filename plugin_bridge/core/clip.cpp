#include "clip.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace vs3r {
namespace {

constexpr std::size_t kClipsKept = 4;
constexpr auto kWait = std::chrono::milliseconds(10);
// Asking a dead engine at every frame would make the host crawl; never asking again would miss an analysis made elsewhere.
constexpr auto kRetry = std::chrono::seconds(5);
constexpr int kLargestSide = 1 << 15;

std::mutex clips_lock;
std::map<Settings, std::weak_ptr<Clip>> clips;
std::list<std::shared_ptr<Clip>> clips_kept;

std::string text_of(double value) {
    char text[32];
    int length = std::snprintf(text, sizeof text, "%.9g", value);
    std::replace(text, text + length, ',', '.'); // Hosts set locales.
    return text;
}

std::int64_t number(const std::vector<std::string> &fields, std::size_t at) {
    long long value = 0;
    if (at >= fields.size() || std::sscanf(fields[at].c_str(), "%lld", &value) != 1)
        throw Error("the bridge's answer makes no sense: expected a number; its version may differ, install both anew");
    return value;
}

[[noreturn]] void refuse(const std::vector<std::string> &answer) {
    if (answer[0] == "error" && answer.size() > 1) throw Error(answer[1]);
    throw Error("the bridge's answer makes no sense; its version may differ, install both anew");
}

} // namespace

Clip::Clip(Settings settings)
    : settings_(std::move(settings)), frames_helper_(helper_program(), settings_.address) {}

Clip::~Clip() { cancel(); }

std::vector<std::string> Clip::open_request(bool analyse) const {
    return {"open",
            analyse ? "1" : "0",
            settings_.media,
            text_of(settings_.smoothness),
            text_of(settings_.frame_limit),
            settings_.camera,
            settings_.fill};
}

void Clip::settle(State state, const std::string &status) {
    std::lock_guard<std::mutex> held(state_lock_);
    state_ = state;
    status_ = status;
    settled_at_ = std::chrono::steady_clock::now();
}

State Clip::state() const {
    std::lock_guard<std::mutex> held(state_lock_);
    return state_;
}

std::string Clip::status() const {
    std::lock_guard<std::mutex> held(state_lock_);
    if (state_ != State::analysing || done_ == 0) return status_;
    return status_ + ": frame " + std::to_string(done_) + (total_ > 0 ? " of " + std::to_string(total_) : "");
}

std::int64_t Clip::frames() const {
    std::lock_guard<std::mutex> held(state_lock_);
    return total_;
}

double Clip::progress() const {
    std::lock_guard<std::mutex> held(state_lock_);
    return total_ > 0 ? std::min(static_cast<double>(done_) / static_cast<double>(total_), 1.0) : 0;
}

void Clip::analyse() {
    std::lock_guard<std::mutex> held(state_lock_);
    if (state_ == State::analysing || state_ == State::ready) return;
    if (analysis_.joinable()) analysis_.join(); // It has settled, so it is ending.
    state_ = State::analysing;
    status_ = "analysing";
    done_ = 0;
    cancelled_ = false;
    analysis_ = std::thread(&Clip::run_analysis, this);
}

void Clip::run_analysis() {
    auto cancelled = [this] {
        std::lock_guard<std::mutex> held(state_lock_);
        return cancelled_;
    };
    // A process of its own: frames can be asked for meanwhile, and ending it cancels.
    Helper helper(helper_program(), settings_.address);
    try {
        helper.send(open_request(true));
        for (;;) {
            std::vector<std::string> answer = helper.receive(cancelled);
            if (answer[0] == "progress") {
                std::int64_t done = number(answer, 1), total = number(answer, 2);
                std::lock_guard<std::mutex> held(state_lock_);
                done_ = done;
                total_ = total;
                continue;
            }
            if (answer[0] != "ready") refuse(answer);
            std::int64_t total = number(answer, 1);
            std::lock_guard<std::mutex> held(state_lock_);
            done_ = total_ = total;
            state_ = State::ready;
            status_ = "analysed: " + std::to_string(total) + " frames";
            return;
        }
    } catch (const Aborted &) {
        settle(State::not_analysed, "cancelled; the source passes through");
    } catch (const std::exception &error) {
        settle(State::failed, std::string(error.what()) + " (the source passes through)");
    }
}

void Clip::cancel() {
    std::thread ending;
    {
        std::lock_guard<std::mutex> held(state_lock_);
        cancelled_ = true;
        ending.swap(analysis_);
    }
    if (ending.joinable()) ending.join();
}

void Clip::wait(std::int64_t frame, const Abort &abort) {
    for (;;) {
        {
            std::lock_guard<std::mutex> held(state_lock_);
            if (state_ != State::analysing || done_ > frame) return;
        }
        if (abort && abort()) throw Aborted();
        std::this_thread::sleep_for(kWait);
    }
}

void Clip::reload() {
    std::lock_guard<std::mutex> held(state_lock_);
    if (state_ == State::analysing) return;
    state_ = State::unknown;
    status_ = "not looked at yet";
}

bool Clip::open(const Abort &abort) {
    if (opened_ && frames_helper_.is_running()) return true;
    opened_ = false;
    frames_helper_.send(open_request(false));
    std::vector<std::string> answer = frames_helper_.receive(abort);
    if (answer[0] == "unanalysed") {
        settle(State::not_analysed, "not analysed yet: the source passes through; press Analyse");
        return false;
    }
    if (answer[0] != "ready") refuse(answer);
    std::int64_t total = number(answer, 1);
    std::lock_guard<std::mutex> held(state_lock_);
    total_ = total;
    state_ = State::ready;
    status_ = "analysed: " + std::to_string(total) + " frames";
    return opened_ = true;
}

std::shared_ptr<const Picture> Clip::frame(std::int64_t index, const Shape &shape, const Abort &abort) {
    const auto [width, height, depth, pixel_aspect] = shape;
    if (width < 1 || height < 1 || width > kLargestSide || height > kLargestSide)
        throw Error("expected a picture of 1 to 32768 pixels a side, got " + std::to_string(width) + "x" +
                    std::to_string(height));
    Key key(std::max<std::int64_t>(index, 0), width, height, depth, pixel_aspect);
    if (auto found = cached(key)) return found;
    std::lock_guard<std::mutex> held(frames_lock_);
    if (auto found = cached(key)) return found; // Another thread wanted it too.
    {
        std::lock_guard<std::mutex> state_held(state_lock_);
        bool has_settled = state_ == State::failed || state_ == State::not_analysed;
        bool is_fresh = std::chrono::steady_clock::now() - settled_at_ < kRetry;
        if (state_ == State::analysing || (has_settled && is_fresh)) return nullptr;
    }
    try {
        if (!open(abort)) return nullptr;
        frames_helper_.send({"frame", std::to_string(std::get<0>(key)), std::to_string(width), std::to_string(height),
                             std::to_string(static_cast<int>(depth)), text_of(pixel_aspect)});
        std::vector<std::string> answer = frames_helper_.receive(abort);
        if (answer[0] != "frame") refuse(answer);
        std::int64_t across = number(answer, 1), down = number(answer, 2);
        if (across < 1 || across > width || down < 1 || down > height) refuse({"nonsense"});
        auto picture = std::make_shared<Picture>();
        picture->width = static_cast<int>(across);
        picture->height = static_cast<int>(down);
        picture->depth = depth;
        std::size_t size = std::size_t{4} * static_cast<std::size_t>(depth) * static_cast<std::size_t>(across * down);
        if (number(answer, 3) != static_cast<std::int64_t>(size)) refuse({"nonsense"});
        picture->bytes.resize(size);
        frames_helper_.receive(picture->bytes.data(), size, abort);
        keep(key, picture);
        return picture;
    } catch (const Aborted &) {
        throw;
    } catch (const std::exception &error) {
        frames_helper_.end();
        settle(State::failed, std::string(error.what()) + " (the source passes through)");
        throw Error(error.what());
    }
}

std::shared_ptr<const Picture> Clip::cached(const Key &key) {
    std::lock_guard<std::mutex> held(state_lock_);
    for (auto at = cache_.begin(); at != cache_.end(); ++at) {
        if (at->first != key) continue;
        cache_.splice(cache_.begin(), cache_, at);
        return cache_.front().second;
    }
    return nullptr;
}

void Clip::keep(const Key &key, std::shared_ptr<const Picture> picture) {
    std::lock_guard<std::mutex> held(state_lock_);
    cache_bytes_ += picture->bytes.size();
    cache_.emplace_front(key, std::move(picture));
    while (cache_bytes_ > kCacheBytes && cache_.size() > 1) {
        cache_bytes_ -= cache_.back().second->bytes.size();
        cache_.pop_back();
    }
}

std::shared_ptr<Clip> find_clip(const Settings &settings) {
    // Ended outside the lock: it may wait for an analysis to stop.
    std::shared_ptr<Clip> dropped;
    std::lock_guard<std::mutex> held(clips_lock);
    std::shared_ptr<Clip> clip = clips[settings].lock();
    if (clip == nullptr) {
        for (auto at = clips.begin(); at != clips.end();)
            at = at->second.expired() ? clips.erase(at) : std::next(at);
        clip = std::make_shared<Clip>(settings);
        clips[settings] = clip;
    }
    clips_kept.remove(clip);
    clips_kept.push_front(clip);
    if (clips_kept.size() > kClipsKept) {
        dropped = clips_kept.back();
        clips_kept.pop_back();
    }
    return clip;
}

void drop_clips() {
    std::list<std::shared_ptr<Clip>> dropped;
    std::lock_guard<std::mutex> held(clips_lock);
    dropped.swap(clips_kept);
}

} // namespace vs3r
