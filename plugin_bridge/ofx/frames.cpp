#include "frames.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace vs3r::ofx {
namespace {

// Every so manieth row: an effect before this one changes more than the others.
constexpr int kRows = 8;
constexpr int kCells = 4, kSamples = 16, kChannels = 3;
// Mean difference of levels out of 255.
constexpr double kAlike = 4, kLeastContrast = 0.3;

// From the host's rows and depth. What lies outside of its bounds is transparent.
HostFrame host_frame(const Image &image, double scale) {
    const RectI &whole = image.whole();
    HostFrame frame;
    frame.width = whole.x2 - whole.x1;
    frame.height = whole.y2 - whole.y1;
    frame.depth = image.channel() == Channel::byte ? Depth::byte : Depth::half_word;
    frame.pixel_aspect = image.pixel_aspect() * scale;
    frame.is_premultiplied = image.is_premultiplied();
    frame.fingerprint = fingerprint(image);
    if (frame.width < 1 || frame.height < 1) throw Error("the host gives an empty picture; see whether the clip is online");
    std::size_t row_bytes = std::size_t{4} * static_cast<std::size_t>(frame.depth) * static_cast<std::size_t>(frame.width);
    frame.bytes.resize(row_bytes * static_cast<std::size_t>(frame.height));
    bool is_plain = image.channel() == Channel::byte || image.channel() == Channel::word;
    const RectI &at = image.bounds();
    int left = std::max(at.x1, whole.x1), right = std::min(at.x2, whole.x2);
    std::size_t pixel_bytes = row_bytes / static_cast<std::size_t>(frame.width);
    for (int y = std::max(at.y1, whole.y1); y < std::min(at.y2, whole.y2) && left < right; ++y) {
        std::uint8_t *out = frame.bytes.data() + static_cast<std::size_t>(whole.y2 - 1 - y) * row_bytes +
                            static_cast<std::size_t>(left - whole.x1) * pixel_bytes;
        const std::uint8_t *in = image.pixel(left, y);
        if (is_plain) {
            std::memcpy(out, in, static_cast<std::size_t>(right - left) * pixel_bytes);
            continue;
        }
        for (int i = 0; i < 4 * (right - left); ++i)
            set_value(Channel::word, out, i, value(image.channel(), in, i));
    }
    return frame;
}

} // namespace

std::uint64_t fingerprint(const Image &image) {
    const RectI &at = image.bounds();
    std::uint64_t hash = 14695981039346656037u;
    std::size_t words = static_cast<std::size_t>(std::max(at.x2 - at.x1, 0)) * static_cast<std::size_t>(image.pixel_bytes()) / 8;
    for (int y = at.y1; y < at.y2; y += kRows) {
        const std::uint8_t *row = image.pixel(at.x1, y);
        for (std::size_t i = 0; row != nullptr && i < words; ++i) {
            std::uint64_t word;
            std::memcpy(&word, row + 8 * i, sizeof word);
            hash = (hash ^ word) * 1099511628211u;
            hash ^= hash >> 29; // High bits reach low ones.
        }
    }
    return hash;
}

std::string signature(const Image &image) {
    const RectI &whole = image.whole();
    constexpr int kSide = kCells * kSamples;
    float sums[kChannels][kCells * kCells] = {};
    for (int j = 0; j < kSide; ++j)
        for (int i = 0; i < kSide; ++i) {
            int x = whole.x1 + (2 * i + 1) * (whole.x2 - whole.x1) / (2 * kSide);
            int y = whole.y2 - 1 - (2 * j + 1) * (whole.y2 - whole.y1) / (2 * kSide);
            const std::uint8_t *pixel = image.pixel(x, y);
            if (pixel == nullptr) continue;
            for (int c = 0; c < kChannels; ++c)
                sums[c][j / kSamples * kCells + i / kSamples] += std::clamp(value(image.channel(), pixel, c), 0.0f, 1.0f);
        }
    std::string result;
    for (auto &channel : sums)
        for (float sum : channel) result += static_cast<char>(static_cast<unsigned char>(sum / (kSamples * kSamples) * 255));
    return result;
}

bool are_alike(const std::string &stored, const std::string &found) {
    if (stored.size() != kSignatureBytes || found.size() != kSignatureBytes) return false;
    constexpr int kCount = kCells * kCells;
    double residue = 0;
    for (int c = 0; c < kChannels; ++c) {
        double old_values[kCount], new_values[kCount], old_mean = 0, new_mean = 0, both = 0, old_square = 0;
        for (int i = 0; i < kCount; ++i) {
            auto at = static_cast<std::size_t>(c * kCount + i);
            old_mean += (old_values[i] = static_cast<unsigned char>(stored[at])) / kCount;
            new_mean += (new_values[i] = static_cast<unsigned char>(found[at])) / kCount;
        }
        for (int i = 0; i < kCount; ++i) {
            both += (old_values[i] - old_mean) * (new_values[i] - new_mean);
            old_square += (old_values[i] - old_mean) * (old_values[i] - old_mean);
        }
        // The contrast that fits best; of an even picture it cannot be told.
        double contrast = old_square > kCount ? both / old_square : 1;
        if (contrast < kLeastContrast) return false;
        for (int i = 0; i < kCount; ++i)
            residue += std::abs(new_values[i] - new_mean - contrast * (old_values[i] - old_mean)) / (kChannels * kCount);
    }
    return residue <= kAlike;
}

SourceFrames::SourceFrames(ImageClip clip, const Place &place, double scale) : clip_(clip), place_(place), scale_(scale) {
    Properties properties = properties_of(clip);
    auto first = properties.real("OfxImageEffectPropFrameRange", 0), last = properties.real("OfxImageEffectPropFrameRange", 1);
    if (!first || !last) return;
    first_ = *first;
    last_ = *last;
}

std::int64_t SourceFrames::count() const { return std::max<std::int64_t>(std::llround(last_ - first_) + 1, 0); }

HostFrame SourceFrames::fetch(std::int64_t index, const std::string &signatures) const {
    std::string found;
    HostFrame frame = fetch_signed(index, &found);
    std::size_t at = static_cast<std::size_t>(index) * kSignatureBytes;
    if (!signatures.empty() && (at >= signatures.size() || !are_alike(signatures.substr(at, kSignatureBytes), found)))
        throw Error("the clip is not the one that was analysed: press Analyse");
    return frame;
}

HostFrame SourceFrames::fetch_signed(std::int64_t index, std::string *signature_out) const {
    Time time = place_.time + static_cast<double>(index - place_.index) / place_.ratio;
    // Beyond the clip some hosts give what is no part of it.
    if (time < first_ - 0.5 || time > last_ + 0.5)
        throw Error("frame " + std::to_string(index) + " lies outside of the clip as it is trimmed now: press Analyse");
    Image image(clip_, std::clamp(time, first_, last_));
    if (!image) throw Error("the host does not give its frame at " + std::to_string(time) + "; choose the clip's Source file");
    *signature_out = signature(image);
    return host_frame(image, scale_);
}

} // namespace vs3r::ofx
