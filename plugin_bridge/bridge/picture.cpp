#include "picture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace vs3r {
namespace {

struct Planar {
    bool is_rgb = false; // Planes G, B, R.
    int bits = 8, shift_x = 0, shift_y = 0;
};

struct Plane {
    int width = 0, height = 0;
    std::vector<float> values; // [0, 1] for luma and RGB, about [-0.5, 0.5] for chroma.
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
    std::vector<int> first;
    std::vector<std::vector<float>> weights;

    // `offset`: how far the centre of the source's first sample lies from the middle of its first pixel, in samples.
    Scale(int from, int to, double offset) {
        double ratio = static_cast<double>(from) / to, reach = std::max(ratio, 1.0);
        for (int i = 0; i < to; ++i) {
            double centre = (i + 0.5) * ratio - 0.5 + offset;
            int begin = static_cast<int>(std::floor(centre - reach)) + 1;
            std::vector<float> found;
            double sum = 0;
            int low = std::clamp(begin, 0, from - 1);
            for (int at = begin; at < centre + reach; ++at) {
                double weight = std::max(0.0, 1 - std::abs(at - centre) / reach);
                std::size_t slot = static_cast<std::size_t>(std::clamp(at, 0, from - 1) - low);
                if (slot >= found.size()) found.resize(slot + 1);
                found[slot] += static_cast<float>(weight);
                sum += weight;
            }
            for (float &weight : found) weight = static_cast<float>(weight / sum);
            first.push_back(low);
            weights.push_back(std::move(found));
        }
    }
};

Plane scaled(const Plane &plane, int width, int height, double offset_x) {
    if (plane.width == width && plane.height == height) return plane;
    Scale across(plane.width, width, offset_x), down(plane.height, height, 0);
    std::vector<float> row(static_cast<std::size_t>(plane.width));
    Plane result{width, height, std::vector<float>(static_cast<std::size_t>(width) * static_cast<std::size_t>(height))};
    float *out = result.values.data();
    for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y) {
        std::fill(row.begin(), row.end(), 0.0f);
        for (std::size_t k = 0; k < down.weights[y].size(); ++k) {
            const float *in = plane.values.data() + (static_cast<std::size_t>(down.first[y]) + k) * row.size();
            for (std::size_t x = 0; x < row.size(); ++x) row[x] += down.weights[y][k] * in[x];
        }
        for (std::size_t x = 0; x < static_cast<std::size_t>(width); ++x) {
            float sum = 0;
            for (std::size_t k = 0; k < across.weights[x].size(); ++k)
                sum += across.weights[x][k] * row[static_cast<std::size_t>(across.first[x]) + k];
            *out++ = sum;
        }
    }
    return result;
}

std::vector<Plane> unpacked(const Planar &layout, const vs3r::v1::FrameFormat &format, const std::string &data) {
    std::vector<Plane> planes;
    const auto *bytes = reinterpret_cast<const unsigned char *>(data.data());
    std::size_t at = 0, sample = layout.bits > 8 ? 2 : 1;
    bool full = layout.is_rgb || format.color_space().full_range();
    float step = static_cast<float>(1 << (layout.bits - 8)), white = static_cast<float>((1 << layout.bits) - 1);
    for (int p = 0; p < 3; ++p) {
        bool chroma = p > 0 && !layout.is_rgb;
        int shift_x = chroma ? layout.shift_x : 0, shift_y = chroma ? layout.shift_y : 0;
        Plane plane;
        plane.width = (static_cast<int>(format.width()) + (1 << shift_x) - 1) >> shift_x;
        plane.height = (static_cast<int>(format.height()) + (1 << shift_y) - 1) >> shift_y;
        std::size_t packed = static_cast<std::size_t>(plane.width) * sample;
        std::size_t stride = p < format.row_strides_size() ? format.row_strides(p) : packed;
        std::size_t rows = static_cast<std::size_t>(plane.height);
        if (stride < packed || data.size() < at + stride * rows)
            throw std::runtime_error("the engine sent a picture that is too short; its version may differ");
        float zero = chroma ? 128 * step : full ? 0 : 16 * step;
        float range = full ? white : chroma ? 224 * step : 219 * step;
        plane.values.reserve(packed / sample * rows);
        for (std::size_t y = 0; y < rows; ++y)
            for (std::size_t x = 0; x < packed; x += sample) {
                const unsigned char *value = bytes + at + y * stride + x;
                int raw = sample == 2 ? value[0] | value[1] << 8 : value[0];
                plane.values.push_back((static_cast<float>(raw) - zero) / range);
            }
        at += stride * rows;
        planes.push_back(std::move(plane));
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

void store(std::uint8_t *out, std::size_t channel, float value, int bytes) {
    value = std::clamp(value, 0.0f, 1.0f);
    if (bytes == 1) {
        out[channel] = static_cast<std::uint8_t>(value * 255 + 0.5f);
    } else {
        auto word = static_cast<std::uint16_t>(value * 65535 + 0.5f);
        std::memcpy(out + 2 * channel, &word, 2);
    }
}

// Planes of RGBA pixels with 1 or 2 bytes a channel.
std::vector<Plane> channels(const std::string &data, int width, int height, int bytes) {
    std::size_t count = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    if (data.size() < 4 * count * static_cast<std::size_t>(bytes))
        throw std::runtime_error("the engine sent a picture that is too short; its version may differ");
    std::vector<Plane> planes(4, Plane{width, height, std::vector<float>(count)});
    const auto *from = reinterpret_cast<const unsigned char *>(data.data());
    for (std::size_t i = 0; i < 4 * count; ++i) {
        float value = bytes == 1 ? from[i] / 255.0f : static_cast<float>(from[2 * i] | from[2 * i + 1] << 8) / 65535.0f;
        planes[i % 4].values[i / 4] = value;
    }
    return planes;
}

std::vector<std::uint8_t> interleaved(std::vector<Plane> planes, int width, int height, int bytes) {
    std::size_t count = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    std::vector<std::uint8_t> result(4 * count * static_cast<std::size_t>(bytes));
    for (std::size_t c = 0; c < planes.size(); ++c) {
        Plane plane = scaled(planes[c], width, height, 0);
        for (std::size_t i = 0; i < count; ++i) store(result.data(), 4 * i + c, plane.values[i], bytes);
    }
    return result;
}

} // namespace

std::vector<std::uint8_t> rgba(const vs3r::v1::FrameFormat &format, const std::string &data, int width, int height,
                               int bytes_per_channel) {
    if (format.pixel_format() == vs3r::v1::PIXEL_FORMAT_RGBA8 || format.pixel_format() == vs3r::v1::PIXEL_FORMAT_RGBA16) {
        int bytes = format.pixel_format() == vs3r::v1::PIXEL_FORMAT_RGBA8 ? 1 : 2;
        return interleaved(channels(data, static_cast<int>(format.width()), static_cast<int>(format.height()), bytes),
                           width, height, bytes_per_channel);
    }
    Planar layout = planar(format);
    std::vector<Plane> planes = unpacked(layout, format, data);
    for (int p = 0; p < 3; ++p) {
        bool aside = p > 0 && layout.shift_x > 0; // Chroma sits on the left pixel of its pair.
        planes[static_cast<std::size_t>(p)] = scaled(planes[static_cast<std::size_t>(p)], width, height, aside ? 0.25 : 0);
    }
    auto [red, blue] = luma_weights(format);
    std::size_t count = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    std::size_t pixel = 4 * static_cast<std::size_t>(bytes_per_channel);
    std::vector<std::uint8_t> result(count * pixel);
    for (std::size_t i = 0; i < count; ++i) {
        float first = planes[0].values[i], second = planes[1].values[i], third = planes[2].values[i];
        float r = third, g = first, b = second;
        if (!layout.is_rgb) {
            r = first + 2 * (1 - red) * third;
            b = first + 2 * (1 - blue) * second;
            g = (first - red * r - blue * b) / (1 - red - blue);
        }
        std::uint8_t *out = result.data() + i * pixel;
        store(out, 0, r, bytes_per_channel);
        store(out, 1, g, bytes_per_channel);
        store(out, 2, b, bytes_per_channel);
        store(out, 3, 1, bytes_per_channel);
    }
    return result;
}

void resize(std::string &pixels, int from_width, int from_height, int bytes, int width, int height) {
    if (from_width == width && from_height == height) return;
    std::vector<std::uint8_t> result = interleaved(channels(pixels, from_width, from_height, bytes), width, height, bytes);
    pixels.assign(result.begin(), result.end());
}

std::pair<int, int> fitted(const vs3r::v1::FrameFormat &format, int width, int height, double pixel_aspect) {
    double own = static_cast<double>(format.width()) / format.height();
    const vs3r::v1::Rational &own_pixel = format.pixel_aspect();
    if (own_pixel.numerator() > 0 && own_pixel.denominator() > 0)
        own *= static_cast<double>(own_pixel.numerator()) / static_cast<double>(own_pixel.denominator());
    int across = std::min(width, static_cast<int>(std::lround(height * own / pixel_aspect)));
    int down = std::min(height, static_cast<int>(std::lround(width * pixel_aspect / own)));
    // Shapes that differ by less than a pixel or two are roundings of the same.
    return {width - across < 2 ? width : std::max(across, 1), height - down < 2 ? height : std::max(down, 1)};
}

} // namespace vs3r
