// An instance of the effect, and which way its frames come.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "clip.h"
#include "frames.h"
#include "host.h"
#include "track.h"

namespace vs3r::ofx {

// file: the engine reads the clip's file. frames: the host gives every frame. single: a saved track moves the one frame that
// the host gives. none: nothing can be done.
enum class Way { none, file, frames, single };

// What an instance is to do now.
struct Work {
    Way way = Way::none;
    Settings settings;
    std::shared_ptr<const SavedTrack> track; // Of the file that was chosen, or of the project; may be null.
    bool is_track_file = false;
    ImageClip source = nullptr;
    std::string problem; // Why the source passes through, where that is known already.
};

// One per instance. Its clip may be another's too.
class Instance {
public:
    // The clip of these settings, kept alive until another is asked for.
    std::shared_ptr<Clip> clip(const Settings &settings);
    // The host's frames have changed.
    void forget_frames();
    // Of the parameters, read anew when they have changed.
    std::shared_ptr<const SavedTrack> saved(const std::string &text);
    std::shared_ptr<const SavedTrack> loaded(const std::string &path);
    // True where it is not what was said last.
    bool says(const std::string &message);
    // For frames of the host: what no other instance is called.
    const std::string &name() const { return name_; }

private:
    std::mutex lock_;
    std::shared_ptr<Clip> clip_;
    std::shared_ptr<const SavedTrack> saved_, loaded_;
    std::string message_, saved_text_, loaded_stamp_;
    const std::string name_ = "instance-" + random_name();
};

Instance *instance_of(Effect effect);
ImageClip clip_named(Effect effect, const char *name);
Work work_of(Effect effect, const Host *host);
// Which of the clip's frames is shown at a time.
Place place_of(Effect effect, const Work &work, const Properties &arguments, Time time);

} // namespace vs3r::ofx
