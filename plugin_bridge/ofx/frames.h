// The host's own frames, for clips whose file is not known.
#pragma once

#include <cstdint>
#include <string>

#include "clip.h"
#include "image.h"

namespace vs3r::ofx {

// Of a picture's pixels: another picture has another, and so has the same one after an effect before this was changed.
std::uint64_t fingerprint(const Image &image);
// Bytes that are alike for the same picture at every size and depth: colours of 4x4 cells, one channel after another.
std::string signature(const Image &image);
constexpr std::size_t kSignatureBytes = 48;
// Of the same frame, up to brightness and contrast.
bool are_alike(const std::string &stored, const std::string &found);

// Where a frame's number lies in the host's time.
struct Place {
    Time time = 0; // Of the frame `index`.
    std::int64_t index = 0;
    double ratio = 1; // Frames of the clip for one of the host.
};

class SourceFrames {
public:
    // `scale`: what a pixel's shape is multiplied by in renders that are not scaled evenly.
    SourceFrames(ImageClip clip, const Place &place, double scale);

    // Frames at the host's rate; 0 where the host does not tell.
    std::int64_t count() const;
    Time first() const { return first_; }
    // `signatures`: of all frames, or empty. Throws Error where the host has no such frame, or another one.
    HostFrame fetch(std::int64_t index, const std::string &signatures) const;
    // The same, and its signature.
    HostFrame fetch_signed(std::int64_t index, std::string *signature_out) const;

private:
    ImageClip clip_;
    Place place_;
    double scale_;
    Time first_ = 0, last_ = -1;
};

} // namespace vs3r::ofx
