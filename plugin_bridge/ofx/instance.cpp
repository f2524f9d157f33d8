#include "instance.h"

#include <cmath>

#include "describe.h"

namespace vs3r::ofx {

std::shared_ptr<Clip> Instance::clip(const Settings &settings) {
    std::shared_ptr<Clip> found = find_clip(settings), before = found;
    std::lock_guard<std::mutex> held(lock_);
    clip_.swap(before); // What was held before may end; outside of the lock.
    return found;
}

void Instance::forget_frames() {
    std::shared_ptr<Clip> clip;
    {
        std::lock_guard<std::mutex> held(lock_);
        clip = clip_;
    }
    if (clip != nullptr) clip->forget_frames();
}

std::shared_ptr<const SavedTrack> Instance::saved(const std::string &text) {
    std::lock_guard<std::mutex> held(lock_);
    if (text != saved_text_) {
        saved_ = read_track(text);
        saved_text_ = text;
    }
    return saved_;
}

std::shared_ptr<const SavedTrack> Instance::loaded(const std::string &path) {
    std::lock_guard<std::mutex> held(lock_);
    std::string stamp = file_stamp(path);
    if (stamp.empty() || stamp != loaded_stamp_) {
        loaded_ = load_track(path);
        loaded_stamp_ = stamp;
    }
    return loaded_;
}

bool Instance::says(const std::string &message) {
    std::lock_guard<std::mutex> held(lock_);
    if (message == message_) return false;
    message_ = message;
    return true;
}

Instance *instance_of(Effect effect) {
    return static_cast<Instance *>(properties_of(effect).pointer("OfxPropInstanceData"));
}

ImageClip clip_named(Effect effect, const char *name) {
    ImageClip clip = nullptr;
    suites().effects->clipGetHandle(effect, name, &clip, nullptr);
    return clip;
}

// The host's own word on the file goes first: a copied effect must not bind the file of another clip.
Work work_of(Effect effect, const Host *host) {
    Parameters parameters(effect);
    Instance &instance = *instance_of(effect);
    Work work;
    work.source = clip_named(effect, name::kSource);
    Settings &settings = work.settings;
    settings.address = parameters.text(name::kEngine);
    settings.smoothness = parameters.real(name::kSmoothness);
    settings.frame_limit = parameters.real(name::kLimit);
    settings.camera = camera_choice(parameters.integer(name::kCamera));
    settings.fill = fill_choice(parameters.integer(name::kFill));
    settings.media = properties_of(effect).text("OfxImageEffectPropSrcFilePath").value_or("");
    if (settings.media.empty()) settings.media = parameters.text(name::kFile);
    std::string track_file = parameters.text(name::kTrackFile);
    work.is_track_file = !track_file.empty();
    try {
        work.track = work.is_track_file ? instance.loaded(track_file) : instance.saved(parameters.text(name::kTrack));
    } catch (const Error &error) {
        work.problem = std::string(error.what()) + " (the source passes through)";
        return work;
    }
    // One of frames is none of a file, and the other way round.
    if (work.track != nullptr && !work.is_track_file && settings.media.empty() == work.track->signatures.empty())
        work.track = nullptr;
    if (work.track != nullptr && work.track->bytes != nullptr) {
        settings.track = work.track->name;
        settings.track_of = work.track->of;
        settings.track_bytes = work.track->bytes;
    }
    bool is_temporal = Properties(host->host).integer("OfxImageEffectPropTemporalClipAccess").value_or(0) != 0;
    if (!settings.media.empty()) {
        work.way = Way::file;
    } else if (is_temporal && SourceFrames(work.source, {}, 1).count() > 0) {
        work.way = Way::frames;
        settings.frames = work.track != nullptr && !work.is_track_file ? work.track->name : instance.name();
        if (work.track == nullptr) work.problem = "not analysed yet: the source passes through; press Analyse";
    } else if (settings.track_bytes != nullptr) {
        work.way = Way::single;
        settings.frames = settings.track;
    } else {
        work.problem = "no file is known, and the host gives no other frames: choose the clip's under Source file, or a Track "
                       "file; the source passes through";
    }
    return work;
}

// The host's own word, or counted from the clip's start.
Place place_of(Effect effect, const Work &work, const Properties &arguments, Time time) {
    std::int64_t offset = Parameters(effect).integer(name::kOffset);
    if (work.way == Way::frames && !work.is_track_file) {
        double first = work.track != nullptr ? work.track->first : SourceFrames(work.source, {}, 1).first();
        return {time, static_cast<std::int64_t>(std::floor(time - first + 0.5)), 1};
    }
    Properties clip = properties_of(work.source);
    double first = clip.real("OfxImageEffectPropFrameRange").value_or(0);
    double rate = clip.real("OfxImageEffectPropFrameRate").value_or(0);
    double own_rate = clip.real("OfxImageEffectPropUnmappedFrameRate").value_or(0);
    double ratio = rate > 0 && own_rate > 0 ? own_rate / rate : 1;
    if (auto frame = arguments.integer("OfxImageEffectPropSrcFrame")) return {time, *frame + offset, ratio};
    return {time, static_cast<std::int64_t>(std::floor((time - first) * ratio + 0.5)) + offset, ratio};
}

} // namespace vs3r::ofx
