#include "warp.h"

#include <algorithm>
#include <cmath>

namespace vs3r::ofx {
namespace {

constexpr int kTaps = 4;

// Catmull and Rom's cubic: weights of the four samples around a place `part` beyond the second.
void cubic(float part, float (&weights)[kTaps]) {
    float square = part * part, cube = square * part;
    weights[0] = 0.5f * (-cube + 2 * square - part);
    weights[1] = 0.5f * (3 * cube - 5 * square + 2);
    weights[2] = 0.5f * (-3 * cube + 4 * square + part);
    weights[3] = 0.5f * (cube - square);
}

// Between the nodes of the map.
float between(const Warp &warp, const std::vector<float> &values, float column, float row) {
    int x = std::clamp(static_cast<int>(column), 0, warp.columns - 2), y = std::clamp(static_cast<int>(row), 0, warp.rows - 2);
    float right = column - static_cast<float>(x), down = row - static_cast<float>(y);
    const float *above = values.data() + static_cast<std::ptrdiff_t>(y) * warp.columns + x, *below = above + warp.columns;
    return (1 - down) * ((1 - right) * above[0] + right * above[1]) + down * ((1 - right) * below[0] + right * below[1]);
}

// One pixel of the source, floats of its four channels, from a place in its own pixels, rows downward.
class Sampler {
public:
    explicit Sampler(const Image &image)
        : image_(image), at_(image.bounds()), width_(at_.x2 - at_.x1), height_(at_.y2 - at_.y1) {}

    bool is_empty() const { return width_ < 1 || height_ < 1; }

    void operator()(float x, float y, float (&result)[4]) const {
        x = std::clamp(x - 0.5f, 0.0f, static_cast<float>(width_ - 1));
        y = std::clamp(y - 0.5f, 0.0f, static_cast<float>(height_ - 1));
        int left = static_cast<int>(x), top = static_cast<int>(y);
        float across[kTaps], down[kTaps];
        cubic(x - static_cast<float>(left), across);
        cubic(y - static_cast<float>(top), down);
        std::fill_n(result, 4, 0.0f);
        for (int j = 0; j < kTaps; ++j)
            for (int i = 0; i < kTaps; ++i) {
                int column = std::clamp(left + i - 1, 0, width_ - 1), row = std::clamp(top + j - 1, 0, height_ - 1);
                const std::uint8_t *pixel = image_.pixel(at_.x1 + column, at_.y2 - 1 - row);
                for (int c = 0; c < 4; ++c) result[c] += down[j] * across[i] * value(image_.channel(), pixel, c);
            }
    }

private:
    const Image &image_;
    RectI at_;
    int width_, height_;
};

} // namespace

void sample(const Warp &warp, const Image &source, const Image &output, const RectI &window) {
    Sampler sampler(source);
    if (sampler.is_empty()) return copy(source, output, window);
    const RectI &whole = source.whole();
    float scale_x = static_cast<float>(whole.x2 - whole.x1) / static_cast<float>(warp.width);
    float scale_y = static_cast<float>(whole.y2 - whole.y1) / static_cast<float>(warp.height);
    auto offset_x = static_cast<float>(whole.x1 - source.bounds().x1), offset_y = static_cast<float>(source.bounds().y2 - whole.y2);
    RectI at{std::max(window.x1, output.bounds().x1), std::max(window.y1, output.bounds().y1),
             std::min(window.x2, output.bounds().x2), std::min(window.y2, output.bounds().y2)};
    for (int y = at.y1; y < at.y2; ++y)
        for (int x = at.x1; x < at.x2; ++x) {
            // The track's pictures have their first row at the top.
            float column = ((static_cast<float>(x - whole.x1) + 0.5f) / scale_x - warp.origin) / warp.step;
            float row = ((static_cast<float>(whole.y2 - 1 - y) + 0.5f) / scale_y - warp.origin) / warp.step;
            float colour[4];
            sampler(between(warp, warp.x, column, row) * scale_x + offset_x,
                    between(warp, warp.y, column, row) * scale_y + offset_y, colour);
            std::uint8_t *pixel = output.pixel(x, y);
            for (int c = 0; c < 4; ++c) set_value(output.channel(), pixel, c, colour[c]);
        }
}

} // namespace vs3r::ofx
