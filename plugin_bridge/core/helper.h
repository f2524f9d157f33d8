// The engine client's near side: a child process that speaks gRPC, so that neither gRPC nor protobuf enters the host.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vs3r {

// What an editor reads in the status line: what was expected, what came, what to do.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The host wants its answer no longer.
struct Aborted : Error {
    Aborted() : Error("stopped") {}
};

// Asked a few times a second while waiting; true ends the wait.
using Abort = std::function<bool()>;

// One child process. Requests and answers are lines of fields with tabs between them (docs/decisions/bridge.md); one
// call at a time. A child that dies, or talks nonsense, is an Error and is started anew by the next request. Ending it
// cancels what it does, at once: the engine sees the connection close.
class Helper {
public:
    // `program`: path of vs3r-bridge. `address`: HOST:PORT or unix:PATH of an engine, empty for one of this machine.
    Helper(std::string program, std::string address);
    ~Helper();
    Helper(const Helper &) = delete;
    Helper &operator=(const Helper &) = delete;

    void send(const std::vector<std::string> &fields);
    void send(const std::uint8_t *bytes, std::size_t count, const Abort &abort);
    std::vector<std::string> receive(const Abort &abort);
    void receive(std::uint8_t *bytes, std::size_t count, const Abort &abort);
    bool is_running() const { return socket_ >= 0; }
    void end();

private:
    void start();
    void wait(short events, const Abort &abort);
    void fill(const Abort &abort);
    [[noreturn]] void died();

    std::string program_, address_;
    pid_t child_ = -1;
    int socket_ = -1;
    std::vector<char> buffer_;
};

// vs3r-bridge: $VS3R_BRIDGE, or beside the library that holds this code.
std::string helper_program();

} // namespace vs3r
