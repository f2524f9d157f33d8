#include "helper.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

extern char **environ;

namespace vs3r {
namespace {

constexpr int kPollMs = 20;
constexpr std::size_t kLongestLine = 1 << 16;

// Tabs and line ends part fields; a path may hold them.
std::string escaped(const std::string &text) {
    std::string result;
    for (char c : text) {
        if (c == '\t' || c == '\n' || c == '\\') {
            result += '\\';
            result += c == '\t' ? 't' : c == '\n' ? 'n' : '\\';
        } else {
            result += c;
        }
    }
    return result;
}

} // namespace

Helper::Helper(std::string program, std::string address)
    : program_(std::move(program)), address_(std::move(address)) {}

Helper::~Helper() { end(); }

void Helper::start() {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        throw Error(std::string("cannot make a socket: ") + std::strerror(errno));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pair[1], STDIN_FILENO);
    // The host's output is the host's own: melt writes pictures to it.
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    // What the host has open is its own, too, however it was opened.
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    // Hosts block or ignore signals as they like; the child starts with none of that.
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    char *arguments[] = {program_.data(), address_.data(), nullptr};
    int failed = posix_spawn(&child_, program_.c_str(), &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(pair[1]);
    if (failed != 0) {
        close(pair[0]);
        child_ = -1;
        throw Error("cannot start " + program_ + ": " + std::strerror(failed) + "; install the plugin again");
    }
    socket_ = pair[0];
}

void Helper::end() {
    if (socket_ >= 0) close(socket_);
    if (child_ > 0) {
        kill(child_, SIGKILL);
        while (waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {}
    }
    socket_ = -1;
    child_ = -1;
    buffer_.clear();
}

void Helper::died() {
    end();
    throw Error("the bridge to the engine ended unexpectedly; try again, and see vs3r doctor");
}

void Helper::send(const std::vector<std::string> &fields) {
    if (!is_running()) start();
    std::string line;
    for (const std::string &field : fields) line += (line.empty() ? "" : "\t") + escaped(field);
    line += '\n';
    for (std::size_t sent = 0; sent < line.size();) {
        ssize_t count = ::send(socket_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) died();
        sent += static_cast<std::size_t>(count);
    }
}

void Helper::send(const std::uint8_t *bytes, std::size_t count, const Abort &abort) {
    while (count > 0) {
        wait(POLLOUT, abort);
        ssize_t sent = ::send(socket_, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (sent < 0) died();
        bytes += sent;
        count -= static_cast<std::size_t>(sent);
    }
}

void Helper::wait(short events, const Abort &abort) {
    for (;;) {
        if (abort && abort()) {
            end();
            throw Aborted();
        }
        pollfd item{socket_, events, 0};
        if (poll(&item, 1, kPollMs) > 0) return;
    }
}

void Helper::fill(const Abort &abort) {
    char chunk[4096];
    wait(POLLIN, abort);
    ssize_t count = recv(socket_, chunk, sizeof chunk, 0);
    if (count < 0 && errno == EINTR) return;
    if (count <= 0) died();
    buffer_.insert(buffer_.end(), chunk, chunk + count);
}

std::vector<std::string> Helper::receive(const Abort &abort) {
    auto end_of_line = std::find(buffer_.begin(), buffer_.end(), '\n');
    while (end_of_line == buffer_.end()) {
        if (buffer_.size() > kLongestLine) died();
        fill(abort);
        end_of_line = std::find(buffer_.begin(), buffer_.end(), '\n');
    }
    std::vector<std::string> fields(1);
    for (auto at = buffer_.begin(); at != end_of_line; ++at) {
        if (*at == '\t')
            fields.emplace_back();
        else
            fields.back() += *at;
    }
    buffer_.erase(buffer_.begin(), end_of_line + 1);
    return fields;
}

void Helper::receive(std::uint8_t *bytes, std::size_t count, const Abort &abort) {
    std::size_t done = std::min(count, buffer_.size());
    std::memcpy(bytes, buffer_.data(), done);
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(done));
    while (done < count) {
        wait(POLLIN, abort);
        ssize_t got = recv(socket_, bytes + done, count - done, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) died();
        done += static_cast<std::size_t>(got);
    }
}

std::string helper_program() {
    if (const char *given = std::getenv("VS3R_BRIDGE")) return given;
    Dl_info info;
    if (dladdr(reinterpret_cast<void *>(&helper_program), &info) == 0) return "vs3r-bridge";
    // Modules may be links in a folder of their own.
    char *real = realpath(info.dli_fname, nullptr);
    std::string library = real != nullptr ? real : info.dli_fname;
    std::free(real);
    return library.substr(0, library.rfind('/') + 1) + "vs3r-bridge";
}

} // namespace vs3r
