// vs3r-bridge ADDRESS: the plugins' gateway to the engine. Requests come and answers go on descriptor 0, a socket;
// docs/decisions/bridge.md has the few lines that are spoken.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "engine.h"
#include "launch.h"
#include "picture.h"

namespace {

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

// Answers the requests for one clip.
class Gateway {
public:
    explicit Gateway(std::string address) : address_(std::move(address)) {}

    void answer(const std::vector<std::string> &fields) {
        if (fields[0] == "open" && fields.size() == 7)
            open({fields[1] == "1", fields[2], std::stod(fields[3]), std::stod(fields[4]), fields[5], fields[6]});
        else if (fields[0] == "frame" && fields.size() == 6 && engine_ != nullptr && frames_ > 0)
            frame(std::stoull(fields[1]), std::stoi(fields[2]), std::stoi(fields[3]), std::stoi(fields[4]),
                  std::stod(fields[5]));
        else
            throw std::runtime_error("the plugin's request makes no sense; its version may differ, install both anew");
    }

private:
    void open(const ClipRequest &clip) {
        if (address_.empty()) vs3r::use_engine(vs3r::own_socket());
        if (engine_ == nullptr) engine_ = std::make_unique<Engine>(address_);
        frames_ = engine_->open(clip, [](std::uint64_t done, std::uint64_t total) {
            say("progress\t" + std::to_string(done) + "\t" + std::to_string(total));
        });
        say(frames_ == 0 ? "unanalysed" : "ready\t" + std::to_string(frames_));
    }

    void frame(std::uint64_t index, int width, int height, int bytes, double pixel_aspect) {
        // Some hosts ask beyond the clip.
        vs3r::v1::GetFrameResponse response = engine_->frame(std::min(index, frames_ - 1));
        if (pixel_aspect > 0) std::tie(width, height) = vs3r::fitted(response.format(), width, height, pixel_aspect);
        std::vector<std::uint8_t> pixels = vs3r::rgba(response.format(), response.frame().data(), width, height, bytes);
        say("frame\t" + std::to_string(width) + "\t" + std::to_string(height) + "\t" + std::to_string(pixels.size()));
        put(reinterpret_cast<const char *>(pixels.data()), pixels.size());
    }

    std::string address_;
    std::unique_ptr<Engine> engine_;
    std::uint64_t frames_ = 0;
};

} // namespace

int main(int count, char **arguments) {
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
