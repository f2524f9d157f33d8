// vs3r-bridge ADDRESS: the plugins' gateway to the engine. Requests come and answers go on descriptor 0, a socket;
// docs/decisions/bridge.md has the few lines that are spoken.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "engine.h"
#include "launch.h"
#include "picture.h"

namespace {

constexpr int kLargestSide = 1 << 15;

using vs3r::ClipRequest;
using vs3r::Engine;

void put(const char *bytes, std::size_t count) {
    while (count > 0) {
        ssize_t sent = send(STDIN_FILENO, bytes, count, MSG_NOSIGNAL);
        if (sent <= 0) std::_Exit(0); // The host has gone, or wants no answer.
        bytes += sent;
        count -= static_cast<std::size_t>(sent);
    }
}

void say(std::string line) {
    for (char &c : line)
        if (c == '\n') c = ' ';
    line += '\n';
    put(line.data(), line.size());
}

std::optional<std::vector<std::string>> request() {
    std::vector<std::string> fields(1);
    bool is_escape = false;
    for (char c; read(STDIN_FILENO, &c, 1) == 1;) {
        if (is_escape) {
            fields.back() += c == 't' ? '\t' : c == 'n' ? '\n' : c;
            is_escape = false;
        } else if (c == '\\') {
            is_escape = true;
        } else if (c == '\n') {
            return fields;
        } else if (c == '\t') {
            fields.emplace_back();
        } else {
            fields.back() += c;
        }
    }
    return std::nullopt;
}

// What follows a request.
std::string payload(std::size_t count) {
    std::string bytes(count, '\0');
    for (std::size_t done = 0; done < count;) {
        ssize_t got = read(STDIN_FILENO, bytes.data() + done, count - done);
        if (got <= 0) std::_Exit(0);
        done += static_cast<std::size_t>(got);
    }
    return bytes;
}

// Answers the requests for one clip.
class Gateway {
public:
    explicit Gateway(std::string address) : address_(std::move(address)) {}

    void answer(const std::vector<std::string> &fields) {
        const std::string &asked = fields[0];
        if (asked == "open" && fields.size() == 12)
            open(fields);
        else if (asked == "analyse" && fields.size() == 4)
            engine().begin_analysis(fields[1], std::stod(fields[2]), std::stod(fields[3])), is_analysis_ = true;
        else if (asked == "push" && fields.size() == 7)
            push(fields);
        else if (asked == "finish" && is_analysis_)
            ready(engine().finish_analysis());
        else if (asked == "frame" && fields.size() == 8 && frames_ > 0)
            frame(std::stoull(fields[1]), std::stoi(fields[2]), std::stoi(fields[3]), std::stoi(fields[4]),
                  std::stod(fields[5]), fields[6] == "1", std::stod(fields[7]));
        else if (asked == "warp" && fields.size() == 2 && frames_ > 0)
            warp(std::stoull(fields[1]));
        else if (asked == "track" && frames_ > 0)
            give("track", engine().track());
        else
            throw std::runtime_error("the plugin's request makes no sense; its version may differ, install both anew");
    }

private:
    Engine &engine() {
        if (engine_ != nullptr) return *engine_;
        if (address_.empty()) vs3r::use_engine(vs3r::own_socket());
        engine_ = std::make_unique<Engine>(address_);
        return *engine_;
    }

    void ready(std::uint64_t frames) {
        frames_ = frames;
        say(frames == 0 ? "unanalysed" : "ready\t" + std::to_string(frames) + "\t" + engine_->identity());
    }

    void open(const std::vector<std::string> &fields) {
        clip_ = {fields[1] == "1", fields[2], std::stod(fields[3]), std::stod(fields[4]), fields[5],
                 fields[6],        fields[7], fields[8],            fields[9],            fields[10],
                 payload(std::stoull(fields[11]))};
        is_analysis_ = false;
        ready(engine().open(clip_, [](std::uint64_t done, std::uint64_t total) {
            say("progress\t" + std::to_string(done) + "\t" + std::to_string(total));
        }));
    }

    void push(const std::vector<std::string> &fields) {
        vs3r::HostPicture picture{std::stoull(fields[1]), std::stoi(fields[2]), std::stoi(fields[3]), std::stoi(fields[4]),
                                  std::stod(fields[5]),   fields[6] == "1",     {}};
        bool is_picture = picture.width > 0 && picture.height > 0 && picture.width <= kLargestSide &&
                          picture.height <= kLargestSide && (picture.bytes == 1 || picture.bytes == 2);
        if (!is_picture) std::_Exit(1); // What follows cannot be told from requests.
        picture.pixels = payload(std::size_t{4} * static_cast<std::size_t>(picture.bytes) *
                                 static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height));
        if (is_analysis_)
            engine().push_analysis(std::move(picture));
        else
            engine().push(std::move(picture));
        say("taken");
    }

    void give(const std::string &head, const std::string &bytes) {
        say(head + "\t" + std::to_string(bytes.size()));
        put(bytes.data(), bytes.size());
    }

    // Once more where the session has expired, or the engine is another.
    template <typename Ask> auto kept(const Ask &ask) {
        try {
            return ask();
        } catch (const vs3r::SessionGone &) {
            engine_->open(clip_, [](std::uint64_t, std::uint64_t) {});
            return ask();
        }
    }

    void frame(std::uint64_t index, int width, int height, int bytes, double pixel_aspect, bool is_upright,
               double stretch) {
        vs3r::Ranges missing;
        // Some hosts ask beyond the clip.
        auto response = kept([&] { return engine_->frame(std::min(index, frames_ - 1), &missing); });
        if (response == nullptr) {
            std::string line = "missing";
            for (const auto &[first, last] : missing) line += "\t" + std::to_string(first) + "\t" + std::to_string(last);
            say(line);
            return;
        }
        const vs3r::v1::FrameFormat &format = response->format();
        int turned_deg = is_upright ? engine_->rotation_deg() : 0;
        bool is_across = turned_deg % 180 != 0;
        if (pixel_aspect > 0)
            std::tie(width, height) = vs3r::fitted(format, width, height, pixel_aspect, is_across, stretch);
        vs3r::rgba(format, response->frame().data(), is_across ? height : width, is_across ? width : height, bytes,
                   turned_deg == 0 ? &pixels_ : &coded_);
        if (turned_deg != 0) vs3r::turn(coded_, width, height, bytes, turned_deg, &pixels_);
        say("frame\t" + std::to_string(width) + "\t" + std::to_string(height) + "\t" + std::to_string(pixels_.size()));
        put(reinterpret_cast<const char *>(pixels_.data()), pixels_.size());
    }

    void warp(std::uint64_t index) {
        vs3r::v1::GetWarpResponse response = kept([&] { return engine_->warp(std::min(index, frames_ - 1)); });
        const vs3r::v1::WarpGrid &grid = response.grid();
        say("warp\t" + std::to_string(grid.rows()) + "\t" + std::to_string(grid.columns()) + "\t" +
            std::to_string(engine_->info().width) + "\t" + std::to_string(engine_->info().height));
        float place[] = {grid.origin_px(), grid.step_px()};
        put(reinterpret_cast<const char *>(place), sizeof place);
        put(grid.x().data(), grid.x().size());
        put(grid.y().data(), grid.y().size());
    }

    std::string address_;
    std::unique_ptr<Engine> engine_;
    ClipRequest clip_;
    bool is_analysis_ = false;
    std::uint64_t frames_ = 0;
    std::vector<std::uint8_t> pixels_, coded_; // The last picture, whose memory the next one uses; before it was turned.
};

// A host that is killed in the midst of an answer wants no more of it; the engine sees the connection close.
void end_with_host() {
    pollfd line{STDIN_FILENO, POLLRDHUP, 0};
    while (poll(&line, 1, -1) < 0) {}
    std::_Exit(0);
}

} // namespace

int main(int count, char **arguments) {
    std::thread(end_with_host).detach();
    Gateway gateway(count > 1 ? arguments[1] : "");
    while (auto fields = request()) {
        try {
            gateway.answer(*fields);
        } catch (const std::exception &error) {
            say(std::string("error\t") + error.what());
        }
    }
    return 0;
}
