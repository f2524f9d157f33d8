#include "launch.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace vs3r {
namespace {

constexpr int kLookS = 1;
constexpr int kIdleS = 600;
constexpr int kLockFile = STDERR_FILENO + 1; // Where the keeper has its lock.
constexpr const char *kSessions = "1024", *kSessionIdleS = "300";

std::string environment(const char *name) {
    const char *value = std::getenv(name);
    return value == nullptr ? "" : value;
}

std::string folder() {
    std::string runtime = environment("XDG_RUNTIME_DIR");
    std::string base = runtime.empty() ? "/tmp/vs3r-" + std::to_string(getuid()) : runtime + "/vs3r";
    struct stat about;
    if ((mkdir(base.c_str(), 0700) != 0 && errno != EEXIST) || lstat(base.c_str(), &about) != 0 ||
        !S_ISDIR(about.st_mode) || about.st_uid != getuid() || (about.st_mode & 077) != 0)
        throw std::runtime_error("expected a folder " + base + " that only you can enter; remove it and try again");
    return base;
}

// Full path of vs3r: $VS3R_COMMAND, the first line of vs3r/command in the user's config folder, or by PATH.
std::string command() {
    std::string given = environment("VS3R_COMMAND");
    if (given.empty()) {
        std::string config = environment("XDG_CONFIG_HOME");
        std::ifstream file((config.empty() ? environment("HOME") + "/.config" : config) + "/vs3r/command");
        std::getline(file, given);
    }
    std::string path = given.empty() ? environment("PATH") : "";
    for (std::size_t from = 0; given.empty() && from <= path.size();) {
        std::size_t to = std::min(path.find(':', from), path.size());
        std::string tried = path.substr(from, to - from) + "/vs3r";
        if (access(tried.c_str(), X_OK) == 0) given = tried;
        from = to + 1;
    }
    if (given.empty() || access(given.c_str(), X_OK) != 0)
        throw std::runtime_error(
            (given.empty() ? "vs3r is not in PATH" : given + " cannot be run") +
            std::string("; install it (pip install 'vs3r[server]'), or write its full path into ~/.config/vs3r/command"));
    return given;
}

int locked(const std::string &path, int kind) {
    int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file >= 0 && flock(file, kind | LOCK_NB) == 0) return file;
    if (file >= 0) close(file);
    return -1;
}

int idle_s() {
    std::string given = environment("VS3R_ENGINE_IDLE_S");
    return given.empty() ? kIdleS : std::atoi(given.c_str());
}

// Runs the engine as its child and ends it once nobody has used it for a while.
[[noreturn]] void keep_engine(const std::string &program, const std::string &socket, int keeper) {
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null, file);
    // The bridge's own mark as a user came along. Where the lock has its number already, dup3 does nothing.
    dup3(keeper, kLockFile, O_CLOEXEC);
    closefrom(kLockFile + 1);
    pid_t parent = getpid();
    pid_t engine = fork();
    if (engine == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(1);
        unlink(socket.c_str());
        std::string listen = "unix:" + socket;
        // Hosts that bring a Python and libraries of their own set these for themselves.
        for (const char *name : {"PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"}) unsetenv(name);
        // A slider that is drawn makes a session at every step.
        execl(program.c_str(), program.c_str(), "serve", "--listen", listen.c_str(), "--media-root", "/", "--max-sessions",
              kSessions, "--max-sessions-per-peer", kSessions, "--session-idle-s", kSessionIdleS, nullptr);
        _exit(127);
    }
    for (int idle = 0; waitpid(engine, nullptr, WNOHANG) == 0; sleep(kLookS)) {
        int users = locked(socket + ".users", LOCK_EX);
        idle = users >= 0 ? idle + kLookS : 0;
        if (users >= 0) close(users);
        if (idle >= idle_s()) kill(engine, SIGTERM);
    }
    _exit(0);
}

} // namespace

std::string own_socket() { return folder() + "/engine.sock"; }

std::string start_engine(const std::string &socket) {
    std::string program = command();
    // The keeper holds the lock as long as it lives: whoever finds it taken only waits for the engine to listen.
    int keeper = locked(socket + ".keeper", LOCK_EX);
    if (keeper < 0) return program;
    pid_t child = fork();
    if (child == 0) {
        // Twice, so that it is nobody's child; the lock goes along with the descriptor.
        if (fork() == 0) keep_engine(program, socket, keeper);
        _exit(0);
    }
    waitpid(child, nullptr, 0);
    close(keeper);
    return program;
}

bool is_engine_kept(const std::string &socket) {
    int keeper = locked(socket + ".keeper", LOCK_SH);
    if (keeper >= 0) close(keeper);
    return keeper < 0;
}

void use_engine(const std::string &socket) {
    // Held by the open descriptor until this process ends. While the keeper looks, it is taken for an instant.
    static const int file = open((socket + ".users").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file >= 0) flock(file, LOCK_SH);
}

} // namespace vs3r
