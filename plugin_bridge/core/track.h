// Tracks that are kept in the project or in a file, and what the project keeps of an analysis of the host's frames.
#pragma once

#include <memory>
#include <string>

#include "clip.h"

namespace vs3r {

struct SavedTrack {
    std::string name;       // Of its content; of frames: the plugin's name for them.
    std::string of;         // Of a file: its Clip::identity; empty where that is not known.
    std::string signatures; // Of frames of the host, one after another; empty where there are none.
    double first = 0;       // Time of the first frame in the host.
    std::shared_ptr<const std::string> bytes; // The .vs3r file; null: the engine keeps it.
};

// As the string parameter keeps it, and back. Null where the text is empty or is not one.
std::string written(const SavedTrack &track);
std::shared_ptr<const SavedTrack> read_track(const std::string &text);
// Throws Error where the file cannot be read.
std::shared_ptr<const SavedTrack> load_track(const std::string &path);
// Throws Error where it cannot be written.
void save_track(const std::string &bytes, const std::string &path);
// What tells a file from what it was before; empty where it is none.
std::string file_stamp(const std::string &path);
// A name for a track by its bytes.
std::string track_name(const std::string &bytes);

} // namespace vs3r
