// Clips whose frames the host gives, and what else is asked about a clip than its pictures.
#include <cstring>

#include "clip.h"

namespace vs3r {
namespace {

// Checked by the bridge; a track of a day of film is smaller.
constexpr std::int64_t kLargestAnswer = std::int64_t{1} << 33;

void push(Helper &helper, std::int64_t index, const HostFrame &frame, const Abort &abort) {
    helper.send({"push", std::to_string(index), std::to_string(frame.width), std::to_string(frame.height),
                 std::to_string(static_cast<int>(frame.depth)), text_of(frame.pixel_aspect), frame.is_premultiplied ? "1" : "0"});
    helper.send(frame.bytes.data(), frame.bytes.size(), abort);
    std::vector<std::string> answer = helper.receive(abort);
    if (answer[0] != "taken") refuse(answer);
}

} // namespace

void Clip::analyse_frames(std::int64_t count, double rate, double pixel_aspect,
                          const std::function<HostFrame(std::int64_t)> &fetch,
                          const std::function<bool(double)> &report) {
    cancel();
    {
        std::lock_guard<std::mutex> held(state_lock_);
        begin_analysis();
    }
    Helper helper(helper_program(), settings_.address);
    std::int64_t index = 0;
    Abort cancelled = [&] { return !report(static_cast<double>(index) / static_cast<double>(count)); };
    try {
        helper.send({"analyse", settings_.frames, text_of(rate), text_of(pixel_aspect)});
        for (; index < count; ++index) {
            {
                std::lock_guard<std::mutex> held(state_lock_);
                done_ = index;
                total_ = count;
            }
            push(helper, index, fetch(index), cancelled);
        }
        helper.send({"finish"});
        become_ready(Teller::analysis, helper.receive(cancelled));
    } catch (const Aborted &) {
        settle(Teller::analysis, State::not_analysed, "cancelled; the source passes through");
    } catch (const std::exception &error) {
        settle(Teller::analysis, State::failed, std::string(error.what()) + " (the source passes through)");
    }
}

// `shown`: the frame that is wanted. `again`: also those that were sent before, which the engine has dropped.
void Clip::send_missing(const std::vector<std::string> &answer, const HostFrames &host, std::int64_t shown, bool again,
                        const Abort &abort) {
    for (std::size_t at = 1; at + 1 < answer.size(); at += 2)
        for (std::int64_t index = number(answer, at); index <= number(answer, at + 1); ++index) {
            std::string generation;
            {
                std::lock_guard<std::mutex> held(state_lock_);
                if (!again && sent_.count(index) != 0) continue;
                generation = generation_;
            }
            if (abort && abort()) throw Aborted();
            HostFrame frame = host.fetch(index);
            auto held = lock_frames(abort);
            try {
                if (!open(abort) || opened_ != generation) return;
                push(frames_helper_, index, frame, abort);
            } catch (const Aborted &) {
                throw;
            } catch (const std::exception &error) {
                fail(error);
            }
            std::lock_guard<std::mutex> state_held(state_lock_);
            // Some hosts never give the same picture twice.
            if (opened_ == generation_) sent_[index] = index == shown ? host.shown : frame.fingerprint;
        }
}

void Clip::forget_changed(std::int64_t index, std::uint64_t fingerprint) {
    std::lock_guard<std::mutex> held(state_lock_);
    auto sent = sent_.find(index);
    if (sent != sent_.end() && sent->second != fingerprint) forget();
}

void Clip::forget_frames() {
    std::lock_guard<std::mutex> held(state_lock_);
    forget();
}

void Clip::look(const Abort &abort) {
    auto held = lock_frames(abort);
    if (is_waiting()) return;
    try {
        open(abort);
    } catch (const Aborted &) {
        throw;
    } catch (const std::exception &error) {
        fail(error);
    }
}

std::shared_ptr<const std::string> Clip::track(const Abort &abort) {
    auto held = lock_frames(abort);
    try {
        if (!open(abort)) return nullptr;
        frames_helper_.send({"track"});
        std::vector<std::string> answer = frames_helper_.receive(abort);
        if (answer[0] != "track") refuse(answer);
        std::int64_t size = number(answer, 1);
        if (size < 1 || size > kLargestAnswer) refuse({"nonsense"});
        auto bytes = std::make_shared<std::string>(static_cast<std::size_t>(size), '\0');
        frames_helper_.receive(reinterpret_cast<std::uint8_t *>(bytes->data()), bytes->size(), abort);
        return bytes;
    } catch (const Aborted &) {
        throw;
    } catch (const std::exception &error) {
        fail(error);
    }
}

std::shared_ptr<const Warp> Clip::warp(std::int64_t index, const Abort &abort) {
    auto held = lock_frames(abort);
    if (is_waiting()) return nullptr;
    try {
        if (!open(abort)) return nullptr;
        frames_helper_.send({"warp", std::to_string(std::max<std::int64_t>(index, 0))});
        std::vector<std::string> answer = frames_helper_.receive(abort);
        if (answer[0] != "warp") refuse(answer);
        std::int64_t rows = number(answer, 1), columns = number(answer, 2);
        std::int64_t width = number(answer, 3), height = number(answer, 4);
        if (rows < 2 || columns < 2 || rows * columns > kLargestAnswer / 8 || width < 1 || height < 1) refuse({"nonsense"});
        auto warp = std::make_shared<Warp>();
        warp->rows = static_cast<int>(rows);
        warp->columns = static_cast<int>(columns);
        warp->width = static_cast<int>(width);
        warp->height = static_cast<int>(height);
        float place[2];
        frames_helper_.receive(reinterpret_cast<std::uint8_t *>(place), sizeof place, abort);
        warp->origin = place[0];
        warp->step = place[1];
        for (std::vector<float> *values : {&warp->x, &warp->y}) {
            values->resize(static_cast<std::size_t>(rows * columns));
            frames_helper_.receive(reinterpret_cast<std::uint8_t *>(values->data()), values->size() * sizeof(float), abort);
        }
        return warp;
    } catch (const Aborted &) {
        throw;
    } catch (const std::exception &error) {
        fail(error);
    }
}

} // namespace vs3r
