// A name for a clip's content, so that a file that was moved, or its copy, finds its track.
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace vs3r {

// Size, and a hash (FNV-1a, 64 bits) of the first and the last MiB and 64 blocks between.
inline std::string media_key(const std::string &path) {
    constexpr std::uint64_t kEnds = 1 << 20, kBlock = 4096, kBlocks = 64;
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    struct stat about;
    if (path.empty() || path[0] != '/' || !file || stat(path.c_str(), &about) != 0 || !S_ISREG(about.st_mode))
        throw std::runtime_error("cannot read the clip '" + path + "'; expected the full path of a video file");
    auto size = static_cast<std::uint64_t>(about.st_size);
    std::uint64_t hash = 14695981039346656037u;
    std::vector<char> bytes;
    auto add = [&](std::uint64_t from, std::uint64_t count) {
        bytes.resize(std::min(count, size - std::min(from, size)));
        file.seekg(static_cast<std::streamoff>(from));
        file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        for (char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211u;
    };
    add(0, kEnds);
    for (std::uint64_t i = 1; i <= kBlocks; ++i) add(size / (kBlocks + 1) * i, kBlock);
    add(size - std::min(size, kEnds), kEnds);
    if (!file) throw std::runtime_error("cannot read the clip '" + path + "' to its end; check the disk");
    char text[64];
    std::snprintf(text, sizeof text, "file-%llu-%016llx", static_cast<unsigned long long>(size),
                  static_cast<unsigned long long>(hash));
    return text;
}

} // namespace vs3r
