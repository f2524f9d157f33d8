// From the engine's planes to the host's pixels.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "vs3r/v1/engine.pb.h"

namespace vs3r {

// RGBA scaled to a size, with 1 or 2 bytes a channel; opaque where the format has no alpha. `out` may hold the last one:
// its memory is used again. Throws std::runtime_error for formats that hosts cannot get: what they are, and what to do.
void rgba(const vs3r::v1::FrameFormat &format, const std::string &data, int width, int height, int bytes_per_channel,
          std::vector<std::uint8_t> *out);

// Brings RGBA pixels with 1 or 2 bytes a channel to another size.
void resize(std::string &pixels, int from_width, int from_height, int bytes, int width, int height);

// Width and height of a frame as large as it fits into a picture with pixels of this shape. `is_across`: it is shown turned
// by a quarter. `stretch`: share of a side that it may lack without bars; then it fills the picture.
std::pair<int, int> fitted(const vs3r::v1::FrameFormat &format, int width, int height, double pixel_aspect,
                           bool is_across, double stretch);

// Turns RGBA pixels with 1 or 2 bytes a channel clockwise by 90, 180 or 270 degrees. The size is that of the result.
void turn(const std::vector<std::uint8_t> &pixels, int width, int height, int bytes, int clockwise_deg,
          std::vector<std::uint8_t> *out);

} // namespace vs3r
