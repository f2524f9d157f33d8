// The host's pictures: rows from the bottom or the top, four depths, alpha straight or not.
#pragma once

#include <cstdint>

#include "clip.h"
#include "host.h"

namespace vs3r::ofx {

enum class Channel { none, byte, word, half, single };

// A host's image; it is released with this.
class Image {
public:
    Image(ImageClip clip, Time time);
    ~Image();
    Image(const Image &) = delete;
    Image &operator=(const Image &) = delete;

    // RGBA of a depth that is known, in memory.
    explicit operator bool() const { return channel_ != Channel::none; }
    Channel channel() const { return channel_; }
    // What it covers, in its own pixels, and what the whole picture would.
    const RectI &bounds() const { return bounds_; }
    const RectI &whole() const { return whole_; }
    double pixel_aspect() const { return pixel_aspect_; }
    bool is_premultiplied() const { return is_premultiplied_; }
    // The host says that its alpha is 1 everywhere.
    bool is_opaque() const { return is_opaque_; }
    int pixel_bytes() const;
    // Null outside of its bounds.
    std::uint8_t *pixel(int x, int y) const;

private:
    PropertySet handle_ = nullptr;
    Channel channel_ = Channel::none;
    RectI bounds_{}, whole_{};
    std::uint8_t *data_ = nullptr;
    int row_bytes_ = 0;
    double pixel_aspect_ = 1;
    bool is_premultiplied_ = false, is_opaque_ = false;
};

// A channel of a pixel, white is 1.
float value(Channel channel, const std::uint8_t *pixel, int at);
void set_value(Channel channel, std::uint8_t *pixel, int at, float value);

// How the core gives what becomes this: video has no more than 16 bits.
Depth depth_of(Channel channel);

// The window of the output becomes the source, transparent black where there is none.
void copy(const Image &source, const Image &output, const RectI &window);
// A picture goes into the middle of the source's whole, as far as it lies in the window; the rest becomes the source.
// `with_alpha`: it has its own, and colour that fits it; else alpha is the source's.
void lay(const Picture &picture, const Image &source, const Image &output, const RectI &window, bool with_alpha);

} // namespace vs3r::ofx
