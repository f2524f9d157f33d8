#include "track.h"

#include <sys/stat.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <vector>

namespace vs3r {
namespace {

constexpr const char *kHead = "vs3r1";
constexpr const char *kNone = "-";
constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::int64_t kLargestFile = std::int64_t{1} << 31;

// Base 64 (RFC 4648).
std::string encoded(const std::string &bytes) {
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (std::size_t at = 0; at < bytes.size(); at += 3) {
        std::size_t count = std::min<std::size_t>(bytes.size() - at, 3);
        std::uint32_t group = 0;
        for (std::size_t i = 0; i < 3; ++i) group = group << 8 | (i < count ? static_cast<unsigned char>(bytes[at + i]) : 0u);
        for (std::size_t i = 0; i < 4; ++i) text += i <= count ? kDigits[group >> (18 - 6 * i) & 63] : '=';
    }
    return text.empty() ? kNone : text;
}

// False where the text is none.
bool decode(const std::string &text, std::string *bytes) {
    bytes->clear();
    if (text == kNone) return true;
    std::vector<int> values(256, -1);
    for (int i = 0; i < 64; ++i) values[static_cast<unsigned char>(kDigits[i])] = i;
    bytes->reserve(text.size() / 4 * 3);
    std::uint32_t group = 0;
    int bits = 0;
    for (char digit : text) {
        if (digit == '=') break;
        int value = values[static_cast<unsigned char>(digit)];
        if (value < 0) return false;
        group = group << 6 | static_cast<std::uint32_t>(value);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        *bytes += static_cast<char>(group >> bits & 255);
    }
    return true;
}

} // namespace

std::string written(const SavedTrack &track) {
    return std::string(kHead) + ' ' + track.name + ' ' + (track.of.empty() ? kNone : track.of) + ' ' + text_of(track.first) +
           ' ' + encoded(track.signatures) + ' ' + (track.bytes == nullptr ? kNone : encoded(*track.bytes));
}

std::shared_ptr<const SavedTrack> read_track(const std::string &text) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    auto track = std::make_shared<SavedTrack>();
    std::string head, signatures, bytes, decoded;
    if (!(stream >> head >> track->name >> track->of >> track->first >> signatures >> bytes) || head != kHead) return nullptr;
    if (!decode(signatures, &track->signatures) || !decode(bytes, &decoded)) return nullptr;
    if (track->of == kNone) track->of.clear();
    if (!decoded.empty()) track->bytes = std::make_shared<const std::string>(std::move(decoded));
    return track;
}

std::shared_ptr<const SavedTrack> load_track(const std::string &path) {
    struct stat about;
    std::ifstream file(path, std::ios::binary);
    if (!file || stat(path.c_str(), &about) != 0 || !S_ISREG(about.st_mode) || about.st_size > kLargestFile)
        throw Error("cannot read the track '" + path + "'; expected a .vs3r file that `vs3r analyze` has written");
    std::string bytes(static_cast<std::size_t>(about.st_size), '\0');
    if (!file.read(bytes.data(), about.st_size)) throw Error("cannot read the track '" + path + "' to its end");
    auto track = std::make_shared<SavedTrack>();
    track->name = track_name(bytes);
    track->bytes = std::make_shared<const std::string>(std::move(bytes));
    return track;
}

void save_track(const std::string &bytes, const std::string &path) {
    // Under its own name only when it is whole.
    std::string part = path + "." + random_name().substr(0, 8) + ".part";
    std::ofstream file(part, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
        std::remove(part.c_str());
        throw Error("cannot write the track '" + path + "'; check that its folder is there and has room");
    }
}

std::string file_stamp(const std::string &path) {
    struct stat about;
    if (stat(path.c_str(), &about) != 0) return "";
    return path + ' ' + std::to_string(about.st_size) + ' ' + std::to_string(about.st_mtim.tv_sec) + ' ' +
           std::to_string(about.st_mtim.tv_nsec);
}

std::string track_name(const std::string &bytes) {
    std::uint64_t hash = 14695981039346656037u;
    for (char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211u;
    char text[48];
    std::snprintf(text, sizeof text, "track-%zu-%016llx", bytes.size(), static_cast<unsigned long long>(hash));
    return text;
}

} // namespace vs3r
