// A frame moved by a map, for hosts that give no other frames and tell no file.
#pragma once

#include "clip.h"
#include "image.h"

namespace vs3r::ofx {

// Fills the window of the output from the source, by cubic interpolation, at the host's own depth: nothing is clipped but
// what the depth cannot hold. Beyond the source its edge is repeated.
void sample(const Warp &warp, const Image &source, const Image &output, const RectI &window);

} // namespace vs3r::ofx
