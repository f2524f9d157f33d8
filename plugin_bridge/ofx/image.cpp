#include "image.h"

#include <emmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

namespace vs3r::ofx {
namespace {

// IEEE half precision.
std::uint16_t half_of(float signed_value) {
    float value = std::min(std::abs(signed_value), 65504.0f);
    auto sign = static_cast<std::uint16_t>(std::signbit(signed_value) ? 0x8000 : 0);
    if (value < 0x1p-14f) return static_cast<std::uint16_t>(sign | std::lrint(value * 0x1p24f));
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits += 0xfff + ((bits >> 13) & 1); // To the nearest, ties to even.
    return static_cast<std::uint16_t>(sign | (bits - (112u << 23)) >> 13);
}

float value_of(std::uint16_t half) {
    std::uint32_t magnitude = half & 0x7fffu;
    float value = static_cast<float>(magnitude) * 0x1p-24f;
    if (magnitude >= 0x400u) {
        std::uint32_t bits = (magnitude << 13) + (112u << 23);
        std::memcpy(&value, &bits, sizeof value);
    }
    return half & 0x8000u ? -value : value;
}

constexpr float kUnit = 1.0f / 65535; // 65535 times it is 1 exactly.

template <Channel> struct Sample;
template <> struct Sample<Channel::byte> {
    using Given = std::uint8_t;
    using Kept = std::uint8_t;
    static Kept kept(Given value) { return value; }
    static float share(Kept value) { return static_cast<float>(value) / 255; }
    static Kept scaled(Given value, float share) { return static_cast<Kept>(static_cast<float>(value) * share + 0.5f); }
};
template <> struct Sample<Channel::word> {
    using Given = std::uint16_t;
    using Kept = std::uint16_t;
    static Kept kept(Given value) { return value; }
    static float share(Kept value) { return static_cast<float>(value) / 65535; }
    static Kept scaled(Given value, float share) { return static_cast<Kept>(static_cast<float>(value) * share + 0.5f); }
};
template <> struct Sample<Channel::half> {
    using Given = std::uint16_t;
    using Kept = std::uint16_t;
    static Kept kept(Given value) { return half_of(static_cast<float>(value) / 65535); }
    static float share(Kept value) { return std::clamp(value_of(value), 0.0f, 1.0f); }
    static Kept scaled(Given value, float share) { return half_of(static_cast<float>(value) / 65535 * share); }
};
template <> struct Sample<Channel::single> {
    using Given = std::uint16_t;
    using Kept = float;
    static Kept kept(Given value) { return static_cast<float>(value) * kUnit; }
    static float share(Kept value) { return std::clamp(value, 0.0f, 1.0f); }
    static Kept scaled(Given value, float share) { return static_cast<float>(value) * kUnit * share; }
};

RectI common(const RectI &a, const RectI &b) {
    return {std::max(a.x1, b.x1), std::max(a.y1, b.y1), std::min(a.x2, b.x2), std::min(a.y2, b.y2)};
}

// Memory is what takes the time: a row a turn, in a few threads.
template <typename Row> void in_threads(int first, int last, const Row &row) {
    constexpr int kThreads = 4, kFewRows = 256;
    auto part = [&](int from) {
        for (int y = from; y < last; y += kThreads) row(y);
    };
    if (last - first < kFewRows) {
        for (int y = first; y < last; ++y) row(y);
        return;
    }
    std::vector<std::thread> threads;
    for (int i = 1; i < kThreads; ++i) threads.emplace_back(part, first + i);
    part(first);
    for (std::thread &thread : threads) thread.join();
}

// Where a row's alpha comes from.
enum class Alpha { given, straight, premultiplied };

template <Channel channel>
void lay_row(const typename Sample<channel>::Given *given, const typename Sample<channel>::Kept *alpha, Alpha kind,
             typename Sample<channel>::Kept *out, int count) {
    for (int x = 0; x < count; ++x, given += 4, alpha += 4, out += 4) {
        auto own = kind == Alpha::given ? Sample<channel>::kept(given[3]) : alpha[3];
        float share = kind == Alpha::premultiplied ? Sample<channel>::share(own) : 1;
        for (int c = 0; c < 3; ++c)
            out[c] = share < 1 ? Sample<channel>::scaled(given[c], share) : Sample<channel>::kept(given[c]);
        out[3] = own;
    }
}

// The same for floats, a pixel at a time, past the cache: a picture of this size would only push out what is in there.
template <>
void lay_row<Channel::single>(const std::uint16_t *given, const float *alpha, Alpha kind, float *out, int count) {
    const __m128 unit = _mm_set1_ps(kUnit), zero = _mm_setzero_ps(), one = _mm_set1_ps(1);
    const __m128 last = _mm_castsi128_ps(_mm_set_epi32(-1, 0, 0, 0));
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(out) % sizeof(__m128) == 0;
    for (int x = 0; x < count; ++x, given += 4, alpha += 4, out += 4) {
        __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(given));
        __m128 pixel = _mm_mul_ps(_mm_cvtepi32_ps(_mm_unpacklo_epi16(words, _mm_setzero_si128())), unit);
        if (kind != Alpha::given) {
            __m128 own = _mm_loadu_ps(alpha);
            own = _mm_shuffle_ps(own, own, _MM_SHUFFLE(3, 3, 3, 3));
            if (kind == Alpha::premultiplied) pixel = _mm_mul_ps(pixel, _mm_min_ps(_mm_max_ps(own, zero), one));
            pixel = _mm_or_ps(_mm_and_ps(last, own), _mm_andnot_ps(last, pixel));
        }
        is_aligned ? _mm_stream_ps(out, pixel) : _mm_storeu_ps(out, pixel);
    }
    _mm_sfence();
}

template <Channel channel>
void lay_as(const Picture &picture, const Image &source, const Image &output, const RectI &window, bool with_alpha) {
    using Given = typename Sample<channel>::Given;
    using Kept = typename Sample<channel>::Kept;
    const RectI &whole = source.whole();
    int left = whole.x1 + (whole.x2 - whole.x1 - picture.width) / 2;
    int bottom = whole.y1 + (whole.y2 - whole.y1 - picture.height) / 2;
    RectI at = common(common(window, output.bounds()), {left, bottom, left + picture.width, bottom + picture.height});
    RectI drawn = common(window, output.bounds());
    bool is_whole = at.x1 == drawn.x1 && at.y1 == drawn.y1 && at.x2 == drawn.x2 && at.y2 == drawn.y2;
    RectI seen = common(at, source.bounds());
    bool is_seen = seen.x1 == at.x1 && seen.y1 == at.y1 && seen.x2 == at.x2 && seen.y2 == at.y2;
    bool has_alpha = with_alpha || is_seen;
    if (!is_whole || !has_alpha) copy(source, output, window);
    if (at.x1 >= at.x2) return;
    // Pictures of a file are opaque, too.
    Alpha kind = with_alpha || (is_seen && source.is_opaque()) ? Alpha::given
                 : source.is_premultiplied()                   ? Alpha::premultiplied
                                                               : Alpha::straight;
    in_threads(at.y1, at.y2, [&](int y) {
        // The host's rows go upward, the picture's downward.
        auto row = static_cast<std::size_t>(bottom + picture.height - 1 - y);
        const auto *given = reinterpret_cast<const Given *>(picture.bytes.data()) +
                            4 * (row * static_cast<std::size_t>(picture.width) + static_cast<std::size_t>(at.x1 - left));
        auto *out = reinterpret_cast<Kept *>(output.pixel(at.x1, y));
        // Where the source has no pixel, the output is transparent already.
        const Image &owner = kind != Alpha::given && has_alpha ? source : output;
        const auto *alpha = reinterpret_cast<const Kept *>(owner.pixel(at.x1, y));
        lay_row<channel>(given, alpha, kind, out, at.x2 - at.x1);
    });
}

} // namespace

Image::Image(ImageClip clip, Time time) {
    if (suites().effects->clipGetImage(clip, time, nullptr, &handle_) != kOk) handle_ = nullptr;
    if (handle_ == nullptr) return;
    Properties properties(handle_);
    data_ = static_cast<std::uint8_t *>(properties.pointer("OfxImagePropData"));
    row_bytes_ = properties.integer("OfxImagePropRowBytes").value_or(0);
    bounds_ = properties.rectangle("OfxImagePropBounds").value_or(RectI{});
    whole_ = properties.rectangle("OfxImagePropRegionOfDefinition").value_or(bounds_);
    pixel_aspect_ = properties.real("OfxImagePropPixelAspectRatio").value_or(1);
    std::string alpha = properties.text("OfxImageEffectPropPreMultiplication").value_or("");
    is_premultiplied_ = alpha == "OfxImageAlphaPremultiplied";
    is_opaque_ = alpha == "OfxImageOpaque";
    if (data_ == nullptr || properties.text("OfxImageEffectPropComponents") != "OfxImageComponentRGBA") return;
    std::string depth = properties.text("OfxImageEffectPropPixelDepth").value_or("");
    if (depth == "OfxBitDepthByte") channel_ = Channel::byte;
    if (depth == "OfxBitDepthShort") channel_ = Channel::word;
    if (depth == "OfxBitDepthHalf") channel_ = Channel::half;
    if (depth == "OfxBitDepthFloat") channel_ = Channel::single;
}

Image::~Image() {
    if (handle_ != nullptr) suites().effects->clipReleaseImage(handle_);
}

int Image::pixel_bytes() const {
    return channel_ == Channel::byte ? 4 : channel_ == Channel::single ? 16 : 8;
}

std::uint8_t *Image::pixel(int x, int y) const {
    if (x < bounds_.x1 || x >= bounds_.x2 || y < bounds_.y1 || y >= bounds_.y2) return nullptr;
    return data_ + static_cast<std::ptrdiff_t>(y - bounds_.y1) * row_bytes_ +
           static_cast<std::ptrdiff_t>(x - bounds_.x1) * pixel_bytes();
}

Depth depth_of(Channel channel) {
    return channel == Channel::byte ? Depth::byte : Depth::half_word;
}

void copy(const Image &source, const Image &output, const RectI &window) {
    RectI to = common(window, output.bounds());
    if (to.x1 >= to.x2) return;
    RectI from = common(to, source.bounds());
    auto pixel = static_cast<std::size_t>(output.pixel_bytes());
    for (int y = to.y1; y < to.y2; ++y) {
        bool is_seen = from.x1 < from.x2 && y >= from.y1 && y < from.y2;
        if (!is_seen || from.x1 > to.x1 || from.x2 < to.x2)
            std::memset(output.pixel(to.x1, y), 0, pixel * static_cast<std::size_t>(to.x2 - to.x1));
        if (is_seen)
            std::memcpy(output.pixel(from.x1, y), source.pixel(from.x1, y), pixel * static_cast<std::size_t>(from.x2 - from.x1));
    }
}

void lay(const Picture &picture, const Image &source, const Image &output, const RectI &window, bool with_alpha) {
    switch (output.channel()) {
    case Channel::byte: return lay_as<Channel::byte>(picture, source, output, window, with_alpha);
    case Channel::word: return lay_as<Channel::word>(picture, source, output, window, with_alpha);
    case Channel::half: return lay_as<Channel::half>(picture, source, output, window, with_alpha);
    case Channel::single: return lay_as<Channel::single>(picture, source, output, window, with_alpha);
    case Channel::none: return;
    }
}

float value(Channel channel, const std::uint8_t *pixel, int at) {
    std::uint16_t word = 0;
    float single = 0;
    switch (channel) {
    case Channel::byte: return static_cast<float>(pixel[at]) / 255;
    case Channel::word: std::memcpy(&word, pixel + 2 * at, sizeof word); return static_cast<float>(word) / 65535;
    case Channel::half: std::memcpy(&word, pixel + 2 * at, sizeof word); return value_of(word);
    case Channel::single: std::memcpy(&single, pixel + 4 * at, sizeof single); return single;
    case Channel::none: break;
    }
    return 0;
}

void set_value(Channel channel, std::uint8_t *pixel, int at, float value) {
    auto whole = [value](float white) { return std::lrint(std::clamp(value, 0.0f, 1.0f) * white); };
    std::uint16_t word = 0;
    switch (channel) {
    case Channel::byte: pixel[at] = static_cast<std::uint8_t>(whole(255)); break;
    case Channel::word:
        word = static_cast<std::uint16_t>(whole(65535));
        std::memcpy(pixel + 2 * at, &word, sizeof word);
        break;
    case Channel::half:
        word = half_of(value);
        std::memcpy(pixel + 2 * at, &word, sizeof word);
        break;
    case Channel::single: std::memcpy(pixel + 4 * at, &value, sizeof value); break;
    case Channel::none: break;
    }
}

} // namespace vs3r::ofx
