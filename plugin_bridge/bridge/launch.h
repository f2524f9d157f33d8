// The engine of this user on this machine: where it listens, and how it is started.
#pragma once

#include <string>

namespace vs3r {

// Path of its socket, in a folder that only the user can enter.
std::string own_socket();
// Starts `vs3r serve` there unless another plugin is doing so, and leaves it running for the other instances; it ends
// when no plugin has been connected for a while. Returns the path of vs3r; throws std::runtime_error where it cannot be
// found.
std::string start_engine(const std::string &socket);
// False where the engine that was started has ended.
bool is_engine_kept(const std::string &socket);
// Marks this process as one that uses the engine, until it ends.
void use_engine(const std::string &socket);

} // namespace vs3r
