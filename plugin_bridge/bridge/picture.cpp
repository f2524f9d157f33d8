#include "picture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

namespace vs3r {
namespace {

struct Planar {
    bool is_rgb = false; // Planes G, B, R.
    int bits = 8, shift_x = 0, shift_y = 0;
};

// Samples as the engine sent them.
struct Plane {
    const unsigned char *bytes = nullptr;
    std::size_t stride = 0, step = 0, sample = 1; // Bytes from row to row, from sample to sample, and of one.
    int width = 0, height = 0;
    float zero = 0, range = 255; // What becomes 0, and how far it is to 1.
    double offset_x = 0;         // How far the centre of the first sample lies from the middle of its first pixel.
};

Planar planar(const vs3r::v1::FrameFormat &format) {
    std::string name = format.planar_name();
    if (format.pixel_format() == vs3r::v1::PIXEL_FORMAT_I420) name = "yuv420p";
    Planar result;
    std::string rest;
    auto starts = [&](const char *start) {
        std::size_t length = std::strlen(start);
        if (name.compare(0, length, start) != 0) return false;
        rest = name.substr(length);
        return true;
    };
    if (starts("yuv420p") || starts("yuvj420p"))
        result.shift_x = result.shift_y = 1;
    else if (starts("yuv422p") || starts("yuvj422p"))
        result.shift_x = 1;
    else if (starts("gbrp"))
        result.is_rgb = true;
    else if (!starts("yuv444p") && !starts("yuvj444p"))
        rest = "?";
    if (rest == "10le" || rest == "12le" || rest == "14le" || rest == "16le")
        result.bits = std::stoi(rest);
    else if (!rest.empty())
        throw std::runtime_error("expected frames of YUV or RGB with 8 to 16 bits and no alpha, got '" + name +
                                 "'; convert the clip to one of these");
    return result;
}

// Weights that scale a row or a column: a triangle about each target, as wide as a pixel of the coarser side.
struct Scale {
    std::vector<int> first;      // Of the samples that a target is made of.
    std::vector<int> count;      // How many.
    std::vector<float> weights;  // `most` for each target.
    std::size_t most = 0;

    // `offset`: how far the centre of the source's first sample lies from the middle of its first pixel, in samples.
    Scale(int from, int to, double offset) {
        double ratio = static_cast<double>(from) / to, reach = std::max(ratio, 1.0);
        most = static_cast<std::size_t>(std::ceil(2 * reach)) + 1;
        weights.resize(most * static_cast<std::size_t>(to));
        for (int i = 0; i < to; ++i) {
            double centre = (i + 0.5) * ratio - 0.5 + offset;
            int begin = static_cast<int>(std::floor(centre - reach)) + 1;
            float *found = weights.data() + most * static_cast<std::size_t>(i);
            double sum = 0;
            int low = std::clamp(begin, 0, from - 1), used = 0;
            for (int at = begin; at < centre + reach; ++at) {
                double weight = std::max(0.0, 1 - std::abs(at - centre) / reach);
                int slot = std::clamp(at, 0, from - 1) - low;
                found[slot] += static_cast<float>(weight);
                used = std::max(used, slot + 1);
                sum += weight;
            }
            for (int k = 0; k < used; ++k) found[k] = static_cast<float>(found[k] / sum);
            first.push_back(low);
            count.push_back(used);
        }
    }
};

template <typename Sample> void unpack(const Plane &plane, int y, float *out) {
    const unsigned char *from = plane.bytes + static_cast<std::size_t>(y) * plane.stride;
    for (int x = 0; x < plane.width; ++x, from += plane.step) {
        Sample raw;
        std::memcpy(&raw, from, sizeof raw); // Little endian, as everything here.
        out[x] = (static_cast<float>(raw) - plane.zero) / plane.range;
    }
}

// A plane's rows, scaled to a size: [0, 1] for luma and RGB, about [-0.5, 0.5] for chroma.
class Rows {
public:
    Rows(const Plane &plane, int width, int height)
        : plane_(plane), is_plain_(plane.width == width && plane.height == height),
          across_(plane.width, width, plane.offset_x), down_(plane.height, height, 0) {}

    // `room` is for two rows of the plane.
    void row(int y, float *out, int width, std::vector<float> &room) const {
        if (is_plain_) return unpacked(y, out);
        auto own = static_cast<std::size_t>(plane_.width);
        room.assign(2 * own, 0);
        float *sum = room.data(), *one = sum + own;
        const float *down = down_.weights.data() + down_.most * static_cast<std::size_t>(y);
        for (int k = 0; k < down_.count[static_cast<std::size_t>(y)]; ++k) {
            unpacked(down_.first[static_cast<std::size_t>(y)] + k, one);
            for (std::size_t x = 0; x < own; ++x) sum[x] += down[k] * one[x];
        }
        for (std::size_t x = 0; x < static_cast<std::size_t>(width); ++x) {
            const float *weights = across_.weights.data() + across_.most * x, *in = sum + across_.first[x];
            float value = 0;
            for (int k = 0; k < across_.count[x]; ++k) value += weights[k] * in[k];
            out[x] = value;
        }
    }

private:
    void unpacked(int y, float *out) const {
        plane_.sample == 2 ? unpack<std::uint16_t>(plane_, y, out) : unpack<std::uint8_t>(plane_, y, out);
    }

    const Plane plane_;
    const bool is_plain_;
    const Scale across_, down_;
};

std::vector<Plane> yuv_planes(const Planar &layout, const vs3r::v1::FrameFormat &format, const std::string &data) {
    std::vector<Plane> planes;
    const auto *bytes = reinterpret_cast<const unsigned char *>(data.data());
    bool full = layout.is_rgb || format.color_space().full_range();
    float step = static_cast<float>(1 << (layout.bits - 8)), white = static_cast<float>((1 << layout.bits) - 1);
    std::size_t at = 0;
    for (int p = 0; p < 3; ++p) {
        bool chroma = p > 0 && !layout.is_rgb;
        int shift_x = chroma ? layout.shift_x : 0, shift_y = chroma ? layout.shift_y : 0;
        Plane plane;
        plane.sample = plane.step = layout.bits > 8 ? 2 : 1;
        plane.width = (static_cast<int>(format.width()) + (1 << shift_x) - 1) >> shift_x;
        plane.height = (static_cast<int>(format.height()) + (1 << shift_y) - 1) >> shift_y;
        std::size_t packed = static_cast<std::size_t>(plane.width) * plane.sample;
        plane.stride = p < format.row_strides_size() ? format.row_strides(p) : packed;
        std::size_t size = plane.stride * static_cast<std::size_t>(plane.height);
        if (plane.stride < packed || data.size() < at + size)
            throw std::runtime_error("the engine sent a picture that is too short; its version may differ");
        plane.zero = chroma ? 128 * step : full ? 0 : 16 * step;
        plane.range = full ? white : chroma ? 224 * step : 219 * step;
        plane.offset_x = p > 0 && layout.shift_x > 0 ? 0.25 : 0; // Chroma sits on the left pixel of its pair.
        plane.bytes = bytes + at;
        at += size;
        planes.push_back(plane);
    }
    return planes;
}

// Red and blue weights of luma; unspecified is guessed by size, as players do.
std::pair<float, float> luma_weights(const vs3r::v1::FrameFormat &format) {
    switch (format.color_space().matrix()) {
    case 1: return {0.2126f, 0.0722f};
    case 9:
    case 10: return {0.2627f, 0.0593f};
    case 5:
    case 6: return {0.299f, 0.114f};
    default: break;
    }
    return format.height() > 576 ? std::make_pair(0.2126f, 0.0722f) : std::make_pair(0.299f, 0.114f);
}

// Planes of RGBA pixels with 1 or 2 bytes a channel.
std::vector<Plane> channels(const std::string &data, int width, int height, int bytes) {
    auto sample = static_cast<std::size_t>(bytes), stride = 4 * sample * static_cast<std::size_t>(width);
    if (data.size() < stride * static_cast<std::size_t>(height))
        throw std::runtime_error("the engine sent a picture that is too short; its version may differ");
    std::vector<Plane> planes;
    for (std::size_t c = 0; c < 4; ++c)
        planes.push_back({reinterpret_cast<const unsigned char *>(data.data()) + c * sample, stride, 4 * sample, sample,
                          width, height, 0, bytes == 1 ? 255.0f : 65535.0f, 0});
    return planes;
}

// A row of pixels, of four rows of channels one behind the other. `Pixel` has room for four of `Sample`.
template <typename Sample, typename Pixel> void store(const float *channels, std::size_t count, std::uint8_t *out) {
    constexpr float white = std::numeric_limits<Sample>::max();
    constexpr int bits = std::numeric_limits<Sample>::digits;
    for (std::size_t i = 0; i < count; ++i) {
        Pixel pixel = 0;
        for (std::size_t c = 0; c < 4; ++c) {
            float value = std::min(std::max(channels[c * count + i], 0.0f), 1.0f);
            pixel |= static_cast<Pixel>(static_cast<std::uint32_t>(static_cast<int>(value * white + 0.5f))) << c * bits;
        }
        std::memcpy(out + i * sizeof pixel, &pixel, sizeof pixel);
    }
}

// Rows are made each by itself: a band of them a thread, where they are many.
template <typename Band> void in_bands(int width, int height, const Band &band) {
    constexpr std::int64_t kFewPixels = 1 << 17;
    bool is_small = std::int64_t{width} * height < kFewPixels;
    int count = is_small ? 1 : static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 4u));
    std::vector<std::future<void>> others;
    for (int i = 1; i < count; ++i)
        others.push_back(std::async(std::launch::async, band, height * i / count, height * (i + 1) / count));
    band(0, height / count);
    for (std::future<void> &other : others) other.get();
}

// RGBA of planes that `mix` turns, a row at a time, into red, green and blue; opaque where there are but three.
template <typename Mix>
void draw(const std::vector<Plane> &planes, int width, int height, int bytes, const Mix &mix, std::vector<std::uint8_t> *out) {
    auto across = static_cast<std::size_t>(width), pixel = 4 * static_cast<std::size_t>(bytes);
    out->resize(across * static_cast<std::size_t>(height) * pixel);
    std::vector<Rows> sources;
    for (const Plane &plane : planes) sources.emplace_back(plane, width, height);
    in_bands(width, height, [&](int from, int to) {
        std::vector<float> rows(4 * across, 1), room;
        for (int y = from; y < to; ++y) {
            for (std::size_t c = 0; c < sources.size(); ++c) sources[c].row(y, rows.data() + c * across, width, room);
            mix(rows.data(), rows.data() + across, rows.data() + 2 * across, across);
            std::uint8_t *line = out->data() + static_cast<std::size_t>(y) * across * pixel;
            if (bytes == 1)
                store<std::uint8_t, std::uint32_t>(rows.data(), across, line);
            else
                store<std::uint16_t, std::uint64_t>(rows.data(), across, line);
        }
    });
}

void leave(float *, float *, float *, std::size_t) {}

} // namespace

void rgba(const vs3r::v1::FrameFormat &format, const std::string &data, int width, int height, int bytes_per_channel,
          std::vector<std::uint8_t> *out) {
    if (format.pixel_format() == vs3r::v1::PIXEL_FORMAT_RGBA8 || format.pixel_format() == vs3r::v1::PIXEL_FORMAT_RGBA16) {
        int bytes = format.pixel_format() == vs3r::v1::PIXEL_FORMAT_RGBA8 ? 1 : 2;
        auto planes = channels(data, static_cast<int>(format.width()), static_cast<int>(format.height()), bytes);
        return draw(planes, width, height, bytes_per_channel, leave, out);
    }
    Planar layout = planar(format);
    auto [red, blue] = luma_weights(format);
    auto mix = [is_rgb = layout.is_rgb, red = red, blue = blue](float *first, float *second, float *third, std::size_t count) {
        for (std::size_t x = 0; x < count; ++x) {
            float r = third[x], g = first[x], b = second[x];
            if (!is_rgb) {
                r = first[x] + 2 * (1 - red) * third[x];
                b = first[x] + 2 * (1 - blue) * second[x];
                g = (first[x] - red * r - blue * b) / (1 - red - blue);
            }
            first[x] = r;
            second[x] = g;
            third[x] = b;
        }
    };
    draw(yuv_planes(layout, format, data), width, height, bytes_per_channel, mix, out);
}

void resize(std::string &pixels, int from_width, int from_height, int bytes, int width, int height) {
    if (from_width == width && from_height == height) return;
    std::vector<std::uint8_t> result;
    draw(channels(pixels, from_width, from_height, bytes), width, height, bytes, leave, &result);
    pixels.assign(result.begin(), result.end());
}

std::pair<int, int> fitted(const vs3r::v1::FrameFormat &format, int width, int height, double pixel_aspect,
                           bool is_across, double stretch) {
    double own = static_cast<double>(format.width()) / format.height();
    const vs3r::v1::Rational &own_pixel = format.pixel_aspect();
    if (own_pixel.numerator() > 0 && own_pixel.denominator() > 0)
        own *= static_cast<double>(own_pixel.numerator()) / static_cast<double>(own_pixel.denominator());
    if (is_across) own = 1 / own;
    int across = std::min(width, static_cast<int>(std::lround(height * own / pixel_aspect)));
    int down = std::min(height, static_cast<int>(std::lround(width * pixel_aspect / own)));
    if (across >= (1 - stretch) * width && down >= (1 - stretch) * height) return {width, height};
    // Shapes that differ by less than a pixel or two are roundings of the same.
    return {width - across < 2 ? width : std::max(across, 1), height - down < 2 ? height : std::max(down, 1)};
}

void turn(const std::vector<std::uint8_t> &pixels, int width, int height, int bytes, int clockwise_deg,
          std::vector<std::uint8_t> *out) {
    const std::size_t pixel = std::size_t{4} * static_cast<std::size_t>(bytes);
    const int stride = clockwise_deg == 180 ? width : height;
    out->resize(pixels.size());
    std::uint8_t *to = out->data();
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x, to += pixel) {
            int column = width - 1 - x, row = height - 1 - y;
            if (clockwise_deg == 90) column = y, row = width - 1 - x;
            if (clockwise_deg == 270) column = height - 1 - y, row = x;
            std::memcpy(to, pixels.data() + pixel * (static_cast<std::size_t>(row) * stride + column), pixel);
        }
}

} // namespace vs3r
