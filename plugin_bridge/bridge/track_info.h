// What a .vs3r track says of the pictures that it was made of.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vs3r {

struct TrackInfo {
    int width = 0, height = 0;
    std::pair<std::int64_t, std::int64_t> pixel_aspect{1, 1}, time_base{1, 1}; // Numerator, denominator.
    std::vector<std::int64_t> pts;
};

// Throws std::runtime_error where the bytes are no track.
TrackInfo track_info(const std::string &bytes);

} // namespace vs3r
