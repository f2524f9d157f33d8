// What hosts are told about the effect, and the names of its parameters.
#pragma once

#include <string>

#include "host.h"

namespace vs3r::ofx {

namespace name {
constexpr const char *kAnalyse = "analyse", *kStatus = "status", *kSmoothness = "smoothness", *kLimit = "frame_limit",
                     *kFill = "fill", *kCamera = "camera", *kUnanalysed = "unanalysed", *kFile = "source_file",
                     *kOffset = "frame_offset", *kEngine = "engine", *kTrackFile = "track_file", *kEmbed = "embed_track",
                     *kTrack = "track";
constexpr const char *kSource = "Source", *kOutput = "Output";
} // namespace name

Status describe(Effect effect);
Status describe_in_context(Effect effect);

// What the nth choice of a parameter means to the engine.
std::string fill_choice(int choice);
std::string camera_choice(int choice);

} // namespace vs3r::ofx
