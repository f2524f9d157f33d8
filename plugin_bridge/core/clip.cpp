#include "clip.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <random>

namespace vs3r {
namespace {

constexpr std::size_t kClipsKept = 4;
constexpr auto kWait = std::chrono::milliseconds(10);
// Asking a dead engine at every frame would make the host crawl; never asking again would miss an analysis made elsewhere.
constexpr auto kRetry = std::chrono::seconds(5);
constexpr int kLargestSide = 1 << 15;
// Asking, sending what is missing, and once more what the engine has dropped meanwhile.
constexpr int kAttempts = 4;

std::mutex clips_lock;
std::map<Settings, std::weak_ptr<Clip>> clips;
std::list<std::shared_ptr<Clip>> clips_kept;

} // namespace

std::string random_name() {
    std::random_device device;
    char text[40];
    std::snprintf(text, sizeof text, "%08x%08x%08x", device(), device(), device());
    return text;
}

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

void refuse(const std::vector<std::string> &answer) {
    if (answer[0] == "error" && answer.size() > 1) throw Error(answer[1]);
    throw Error("the bridge's answer makes no sense; its version may differ, install both anew");
}

Clip::Clip(Settings settings)
    : settings_(std::move(settings)), generation_(random_name()), frames_helper_(helper_program(), settings_.address) {}

Clip::~Clip() { cancel(); }

void Clip::send_open(Helper &helper, bool analyse, const std::string &generation, const Abort &abort) const {
    const std::string *bytes = settings_.track_bytes.get();
    helper.send({"open", analyse ? "1" : "0", settings_.media, text_of(settings_.smoothness),
                 text_of(settings_.frame_limit), settings_.camera, settings_.fill, settings_.frames, generation,
                 settings_.track, settings_.track_of, std::to_string(bytes == nullptr ? 0 : bytes->size())});
    if (bytes != nullptr) helper.send(reinterpret_cast<const std::uint8_t *>(bytes->data()), bytes->size(), abort);
}

// What the frames' helper was told before an analysis began does not count any more. With state_lock_ held.
bool Clip::counts(Teller teller) const { return teller == Teller::analysis || opened_ == generation_; }

void Clip::become_ready(Teller teller, const std::vector<std::string> &answer) {
    if (answer[0] != "ready" || answer.size() != 3) refuse(answer);
    std::int64_t total = number(answer, 1);
    std::lock_guard<std::mutex> held(state_lock_);
    if (!counts(teller)) return;
    done_ = total_ = total;
    identity_ = answer[2];
    state_ = State::ready;
    bool is_saved = !settings_.track.empty() && (settings_.track_of.empty() || settings_.track_of == identity_);
    status_ = (is_saved ? "a saved track: " : "analysed: ") + std::to_string(total) + " frames";
}

void Clip::settle(Teller teller, State state, const std::string &status) {
    std::lock_guard<std::mutex> held(state_lock_);
    if (!counts(teller)) return;
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

std::string Clip::identity() const {
    std::lock_guard<std::mutex> held(state_lock_);
    return identity_;
}

std::int64_t Clip::frames() const {
    std::lock_guard<std::mutex> held(state_lock_);
    return total_;
}

double Clip::progress() const {
    std::lock_guard<std::mutex> held(state_lock_);
    return total_ > 0 ? std::min(static_cast<double>(done_) / static_cast<double>(total_), 1.0) : 0;
}

// With state_lock_ held.
void Clip::begin_analysis() {
    forget();
    state_ = State::analysing;
    status_ = "analysing";
    done_ = 0;
}

void Clip::analyse() {
    std::thread ending; // The last one, which has settled. It may still want the lock.
    {
        std::lock_guard<std::mutex> held(state_lock_);
        if (state_ == State::analysing || state_ == State::ready) return;
        std::thread started(&Clip::run_analysis, this); // It soon waits for the lock.
        begin_analysis();
        cancelled_ = false;
        ending = std::move(analysis_);
        analysis_ = std::move(started);
    }
    if (ending.joinable()) ending.join();
}

void Clip::run_analysis() {
    auto cancelled = [this] {
        std::lock_guard<std::mutex> held(state_lock_);
        return cancelled_;
    };
    // A process of its own: frames can be asked for meanwhile, and ending it cancels.
    Helper helper(helper_program(), settings_.address);
    try {
        send_open(helper, true, "", cancelled);
        for (;;) {
            std::vector<std::string> answer = helper.receive(cancelled);
            if (answer[0] == "progress") {
                std::int64_t done = number(answer, 1), total = number(answer, 2);
                std::lock_guard<std::mutex> held(state_lock_);
                done_ = done;
                total_ = total;
                continue;
            }
            become_ready(Teller::analysis, answer);
            return;
        }
    } catch (const Aborted &) {
        settle(Teller::analysis, State::not_analysed, "cancelled; the source passes through");
    } catch (const std::exception &error) {
        settle(Teller::analysis, State::failed, std::string(error.what()) + " (the source passes through)");
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
    forget();
    state_ = State::unknown;
    status_ = "not looked at yet";
}

// What is drawn and open is of something else. With state_lock_ held.
void Clip::forget() {
    generation_ = random_name();
    sent_.clear();
    cache_.clear();
    cache_bytes_ = 0;
}

// Another thread's frame may take long. Not by the steady clock: the thread sanitizer does not see such a lock.
std::unique_lock<std::timed_mutex> Clip::lock_frames(const Abort &abort) {
    std::unique_lock<std::timed_mutex> held(frames_lock_, std::defer_lock);
    while (!held.try_lock_until(std::chrono::system_clock::now() + kWait))
        if (abort && abort()) throw Aborted();
    return held;
}

bool Clip::open(const Abort &abort) {
    {
        std::lock_guard<std::mutex> held(state_lock_);
        if (is_open_ && opened_ == generation_ && frames_helper_.is_running()) return true;
        if (state_ == State::analysing) return false;
        opened_ = generation_;
    }
    is_open_ = false;
    send_open(frames_helper_, false, opened_, abort);
    std::vector<std::string> answer = frames_helper_.receive(abort);
    if (answer[0] == "unanalysed") {
        settle(Teller::frames, State::not_analysed, "not analysed yet: the source passes through; press Analyse");
        return false;
    }
    become_ready(Teller::frames, answer);
    return is_open_ = true;
}

bool Clip::is_waiting() const {
    std::lock_guard<std::mutex> held(state_lock_);
    bool has_settled = state_ == State::failed || state_ == State::not_analysed;
    bool is_fresh = std::chrono::steady_clock::now() - settled_at_ < kRetry;
    return state_ == State::analysing || (has_settled && is_fresh);
}

void Clip::fail(const std::exception &error) {
    frames_helper_.end();
    settle(Teller::frames, State::failed, std::string(error.what()) + " (the source passes through)");
    throw Error(error.what());
}

std::shared_ptr<const Picture> Clip::frame(std::int64_t index, const Shape &shape, const Abort &abort,
                                           const HostFrames *host) {
    const auto [width, height, depth, pixel_aspect, is_upright, stretch] = shape;
    if (width < 1 || height < 1 || width > kLargestSide || height > kLargestSide)
        throw Error("expected a picture of 1 to 32768 pixels a side, got " + std::to_string(width) + "x" +
                    std::to_string(height));
    const std::uint64_t fingerprint = host != nullptr ? host->shown : 0;
    Key key(std::max<std::int64_t>(index, 0), fingerprint, width, height, depth, pixel_aspect, is_upright, stretch);
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
        if (auto found = cached(key)) return found;
        std::vector<std::string> answer;
        {
            auto held = lock_frames(abort);
            if (auto found = cached(key)) return found; // Another thread wanted it too.
            if (is_waiting()) return nullptr;
            try {
                if (host != nullptr) forget_changed(index, fingerprint);
                if (!open(abort)) return nullptr;
                frames_helper_.send({"frame", std::to_string(std::get<0>(key)), std::to_string(width),
                                     std::to_string(height), std::to_string(static_cast<int>(depth)),
                                     text_of(pixel_aspect), is_upright ? "1" : "0", text_of(stretch)});
                answer = frames_helper_.receive(abort);
                if (answer[0] != "missing" || host == nullptr) {
                    auto picture = receive_picture(answer, shape, abort);
                    keep(key, picture);
                    return picture;
                }
            } catch (const Aborted &) {
                throw;
            } catch (const std::exception &error) {
                fail(error);
            }
        }
        send_missing(answer, *host, index, attempt > 0, abort);
    }
    const char *problem = "the engine has no room for the frames around this one: start it with a larger --memory-mb "
                          "(the source passes through)";
    settle(Teller::frames, State::failed, problem);
    throw Error(problem);
}

std::shared_ptr<const Picture> Clip::receive_picture(const std::vector<std::string> &answer, const Shape &shape,
                                                     const Abort &abort) {
    if (answer[0] != "frame") refuse(answer);
    std::int64_t across = number(answer, 1), down = number(answer, 2);
    if (across < 1 || across > shape.width || down < 1 || down > shape.height) refuse({"nonsense"});
    auto picture = std::make_shared<Picture>();
    picture->width = static_cast<int>(across);
    picture->height = static_cast<int>(down);
    picture->depth = shape.depth;
    std::size_t size = std::size_t{4} * static_cast<std::size_t>(shape.depth) * static_cast<std::size_t>(across * down);
    if (number(answer, 3) != static_cast<std::int64_t>(size)) refuse({"nonsense"});
    picture->bytes.resize(size);
    frames_helper_.receive(picture->bytes.data(), size, abort);
    return picture;
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
    if (opened_ != generation_) return; // Drawn before something changed.
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
