#include "track_info.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace vs3r {
namespace {

using google::protobuf::Struct;

constexpr std::size_t kLargestHeader = 1 << 20;

[[noreturn]] void refuse() {
    throw std::runtime_error("expected a .vs3r track, got something else or a part of one; make it anew: vs3r analyze");
}

const google::protobuf::Value &member(const Struct &object, const std::string &name) {
    auto found = object.fields().find(name);
    if (found == object.fields().end()) refuse();
    return found->second;
}

Struct parsed(const std::string &text) {
    Struct object;
    if (!google::protobuf::util::JsonStringToMessage(text, &object).ok()) refuse();
    return object;
}

std::pair<std::int64_t, std::int64_t> fraction(const std::string &text) {
    long long numerator = 0, denominator = 1;
    if (std::sscanf(text.c_str(), "%lld/%lld", &numerator, &denominator) < 1 || numerator < 1 || denominator < 1) refuse();
    return {numerator, denominator};
}

} // namespace

// safetensors: the length of a JSON header, the header, the tensors. engine/track_file.py writes it.
TrackInfo track_info(const std::string &bytes) {
    std::uint64_t length = 0;
    if (bytes.size() < sizeof length) refuse();
    std::memcpy(&length, bytes.data(), sizeof length);
    if (length > kLargestHeader || length > bytes.size() - sizeof length) refuse();
    Struct header = parsed(bytes.substr(sizeof length, length));
    Struct own = parsed(member(member(header, "__metadata__").struct_value(), "vs3r").string_value());
    TrackInfo info;
    info.width = std::atoi(member(own, "width").string_value().c_str());
    info.height = std::atoi(member(own, "height").string_value().c_str());
    info.pixel_aspect = fraction(member(own, "sample_aspect").string_value());
    info.time_base = fraction(member(own, "time_base").string_value());
    const auto &ends = member(member(header, "pts").struct_value(), "data_offsets").list_value();
    if (ends.values_size() != 2 || info.width < 1 || info.height < 1) refuse();
    double first = ends.values(0).number_value(), last = ends.values(1).number_value();
    std::size_t start = sizeof length + length;
    if (!(first >= 0 && last > first && last <= static_cast<double>(bytes.size() - start))) refuse();
    info.pts.resize(static_cast<std::size_t>(last - first) / sizeof(std::int64_t));
    std::memcpy(info.pts.data(), bytes.data() + start + static_cast<std::size_t>(first), info.pts.size() * sizeof(std::int64_t));
    return info;
}

} // namespace vs3r
