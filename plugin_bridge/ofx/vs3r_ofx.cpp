// The OpenFX plugin: Resolve, Nuke, Vegas, Natron, Flame. docs/nle.md tells how it is used.
#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>

#include "clip.h"
#include "describe.h"
#include "frames.h"
#include "host.h"
#include "image.h"
#include "instance.h"
#include "track.h"
#include "warp.h"

namespace vs3r::ofx {
namespace {

constexpr auto kAll = std::numeric_limits<std::int64_t>::max();
constexpr auto kLook = std::chrono::milliseconds(50);
// As far as the engine looks for what fills a frame: fill_window_frames, which is left as it is.
constexpr double kWindow = 30;

const Host *the_host = nullptr;

// Beside the picture, as long as it lasts; in the log where the host has no such place.
void tell(Effect effect, Instance &instance, const std::string &message) {
    if (!instance.says(message)) return;
    const Suites &host = suites();
    if (host.persistent_message != nullptr) {
        if (message.empty())
            host.persistent_message->clearPersistentMessage(effect);
        else
            host.persistent_message->setPersistentMessage(effect, "OfxMessageWarning", "vs3r", "%s", message.c_str());
    } else if (host.message != nullptr && !message.empty()) {
        host.message->message(effect, "OfxMessageLog", "vs3r", "%s", message.c_str());
    }
}

// One picture.
struct Rendering {
    Effect effect;
    const Properties &arguments;
    const Work &work;
    const Image &source, &output;
    RectI window;
    Place place;

    // Pixels of the host's pictures may be scaled unevenly.
    double scale() const {
        double x = arguments.real("OfxImageEffectPropRenderScale", 0).value_or(1);
        double y = arguments.real("OfxImageEffectPropRenderScale", 1).value_or(1);
        return x > 0 ? y / x : 1;
    }

    Shape shape() const {
        const RectI &whole = source.whole();
        // The host's own frames are as large as its pictures.
        bool is_file = work.way == Way::file;
        double aspect = is_file ? source.pixel_aspect() * scale() : 0;
        return {whole.x2 - whole.x1, whole.y2 - whole.y1, depth_of(output.channel()), aspect, is_file};
    }

    // What lies before two instances may differ, as where an effect was copied.
    std::string variant() const {
        if (work.way != Way::frames) return "";
        Shape wanted = shape();
        return instance_of(effect)->name() + ' ' + std::to_string(wanted.width) + "x" +
               std::to_string(wanted.height) + "x" + std::to_string(static_cast<int>(wanted.depth));
    }

    // What is said beside the picture. `is_drawn`: the output's window is filled.
    std::string draw(Clip &clip, const Abort &abort, bool *is_drawn) const {
        if (work.way == Way::single) {
            auto warp = clip.warp(place.index, abort);
            if (warp == nullptr) return clip.status();
            sample(*warp, source, output, window);
            *is_drawn = true;
            return "only the frame itself is moved, beyond it its edge is repeated: no file is known, and the host gives no "
                   "other frames";
        }
        std::shared_ptr<const Picture> picture;
        if (work.way == Way::file) {
            picture = clip.frame(place.index, shape(), abort);
        } else {
            SourceFrames frames(work.source, place, scale());
            std::string signatures = work.track != nullptr ? work.track->signatures : "";
            std::size_t at = static_cast<std::size_t>(std::max<std::int64_t>(place.index, 0)) * kSignatureBytes;
            if (at < signatures.size() && !are_alike(signatures.substr(at, kSignatureBytes), signature(source)))
                throw Error("the clip is not the one that was analysed: the source passes through; press Analyse");
            HostFrames host{[&](std::int64_t index) { return frames.fetch(index, signatures); }, fingerprint(source)};
            picture = clip.frame(place.index, shape(), abort, &host);
        }
        if (picture == nullptr) return clip.status();
        lay(*picture, source, output, window, work.way == Way::frames);
        *is_drawn = true;
        return "";
    }
};

// Resolve says it of the clip, and with a k before its name.
bool is_thumbnail(const Properties &arguments, ImageClip source) {
    return arguments.integer("OfxImageEffectPropThumbnailRender").value_or(0) != 0 ||
           arguments.text("OfxImageEffectPropThumbnailRender").value_or("") == "true" ||
           properties_of(source).integer("kOfxImageClipPropThumbnail").value_or(0) != 0;
}

// Whatever comes, the output is a picture: the source, until something better is there.
Status render(Effect effect, const Properties &arguments) {
    Instance &instance = *instance_of(effect);
    Time time = arguments.real("OfxPropTime").value_or(0);
    Image output(clip_named(effect, name::kOutput), time), source(clip_named(effect, name::kSource), time);
    if (suites().effects->abort(effect) != 0) return kOk;
    if (!output || !source || output.channel() != source.channel()) return kErrImageFormat;
    RectI window = arguments.rectangle("OfxImageEffectPropRenderWindow").value_or(output.bounds());
    bool is_drawn = false;
    Work work = work_of(effect, the_host);
    std::shared_ptr<Clip> clip;
    Abort abort = [effect] { return suites().effects->abort(effect) != 0; };
    try {
        if (!work.problem.empty()) throw Error(work.problem);
        Rendering rendering{effect, arguments, work, source, output, window, place_of(effect, work, arguments, time)};
        work.settings.variant = rendering.variant();
        clip = instance.clip(work.settings);
        if (work.way == Way::file && Parameters(effect).integer(name::kUnanalysed) == 1 && !is_thumbnail(arguments, work.source)) {
            // Looks first whether it is there already.
            if (clip->state() == State::unknown || clip->state() == State::not_analysed) clip->analyse();
            clip->wait(kAll, abort);
        }
        tell(effect, instance, rendering.draw(*clip, abort, &is_drawn));
    } catch (const Aborted &) {
        // Nobody looks at it.
    } catch (const Error &error) {
        bool has_failed = clip != nullptr && clip->state() == State::failed;
        tell(effect, instance, has_failed ? clip->status() : std::string(error.what()));
    }
    if (!is_drawn) copy(source, output, window);
    return kOk;
}

class Progress {
public:
    explicit Progress(Effect effect) : effect_(effect) {
        if (suites().named_progress != nullptr)
            suites().named_progress->start(effect, "VS3R: analysing the clip", "vs3r");
        else if (suites().progress != nullptr)
            suites().progress->start(effect, "VS3R: analysing the clip");
    }
    ~Progress() {
        if (suites().named_progress != nullptr)
            suites().named_progress->end(effect_);
        else if (suites().progress != nullptr)
            suites().progress->end(effect_);
    }
    static bool is_offered() { return suites().named_progress != nullptr || suites().progress != nullptr; }

    // False: the user has cancelled.
    bool update(double share) const {
        auto update = suites().named_progress != nullptr ? suites().named_progress->update : suites().progress->update;
        return update(effect_, share) != kReplyNo;
    }

private:
    Effect effect_;
};

// Where the host shows no progress, the analysis goes on in the background, and the button looks how far it is.
void analyse_file(Effect effect, Clip &clip) {
    clip.reload();
    clip.analyse();
    if (!Progress::is_offered()) return;
    Progress progress(effect);
    while (clip.state() == State::analysing) {
        if (!progress.update(clip.progress())) clip.cancel();
        std::this_thread::sleep_for(kLook);
    }
}

// The host's frames last as long as the action, so it does not end before the analysis. Gives what was found.
std::shared_ptr<SavedTrack> analyse_frames(Effect effect, const Work &work, std::string *status) {
    SourceFrames range(work.source, {}, 1), frames(work.source, {range.first(), 0, 1}, 1);
    Properties clip_properties = properties_of(work.source);
    auto track = std::make_shared<SavedTrack>();
    track->name = "frames-" + random_name();
    track->first = range.first();
    Settings settings = work.settings;
    settings.frames = track->name;
    settings.track.clear();
    settings.track_of.clear();
    settings.track_bytes = nullptr;
    std::shared_ptr<Clip> clip = find_clip(settings);
    auto fetch = [&](std::int64_t index) {
        std::string found;
        HostFrame frame = frames.fetch_signed(index, &found);
        track->signatures += found;
        return frame;
    };
    double rate = clip_properties.real("OfxImageEffectPropFrameRate").value_or(0);
    double aspect = clip_properties.real("OfxImagePropPixelAspectRatio").value_or(1);
    if (Progress::is_offered()) {
        Progress progress(effect);
        clip->analyse_frames(range.count(), rate, aspect, fetch, [&](double share) { return progress.update(share); });
    } else {
        clip->analyse_frames(range.count(), rate, aspect, fetch, [](double) { return true; });
    }
    *status = clip->status();
    if (clip->state() != State::ready) return nullptr;
    track->bytes = clip->track(nullptr);
    return track;
}

// Puts an analysis into the project, or takes it out again.
void keep_track(Effect effect, const Work &work, Clip &clip) {
    Parameters parameters(effect);
    bool is_wanted = parameters.integer(name::kEmbed) != 0 && !work.is_track_file;
    if (!is_wanted) {
        // What names frames of the host stays: without it their analysis is lost.
        SavedTrack bare = work.track != nullptr && !work.is_track_file ? *work.track : SavedTrack();
        bare.bytes = nullptr;
        if (!work.is_track_file) parameters.set_text(name::kTrack, bare.signatures.empty() ? "" : written(bare));
        return;
    }
    bool has_bytes = work.track != nullptr && work.track->bytes != nullptr;
    if (has_bytes && work.way == Way::frames) return;
    if (clip.state() == State::unknown) clip.look(nullptr);
    if (clip.state() != State::ready || (has_bytes && work.track->of == clip.identity())) return;
    SavedTrack track = work.way == Way::frames && work.track != nullptr ? *work.track : SavedTrack();
    track.bytes = clip.track(nullptr);
    if (track.bytes == nullptr) return;
    if (work.way == Way::file) {
        track.name = track_name(*track.bytes);
        track.of = clip.identity();
    }
    parameters.set_text(name::kTrack, written(track));
}

Status changed(Effect effect, const Properties &arguments) {
    std::string reason = arguments.text("OfxPropChangeReason").value_or("");
    std::string changed_name = arguments.text("OfxPropName").value_or("");
    Instance &instance = *instance_of(effect);
    if (arguments.text("OfxPropType").value_or("") == "OfxTypeClip" && reason != "OfxChangeTime") instance.forget_frames();
    // What this plugin sets itself comes back as a change, too.
    if (reason != "OfxChangeUserEdited") return kOk;
    Parameters parameters(effect);
    Work work = work_of(effect, the_host);
    std::string status = work.problem;
    if (work.way == Way::frames && changed_name == name::kAnalyse && !work.is_track_file) {
        if (auto track = analyse_frames(effect, work, &status)) {
            if (parameters.integer(name::kEmbed) == 0) track->bytes = nullptr;
            parameters.set_text(name::kTrack, written(*track));
        }
    } else if (work.problem.empty()) {
        std::shared_ptr<Clip> clip = instance.clip(work.settings);
        if (work.way == Way::file && changed_name == name::kAnalyse) analyse_file(effect, *clip);
        keep_track(effect, work, *clip);
        status = clip->status();
    }
    parameters.set_text(name::kStatus, status);
    return kOk;
}

// No smoothing and the lens as it is: the source.
Status is_identity(Effect effect, const Properties &arguments, const Properties &answer) {
    Parameters parameters(effect);
    if (parameters.real(name::kSmoothness) > 0 || camera_choice(parameters.integer(name::kCamera)) != Settings().camera)
        return kReplyDefault;
    answer.set("OfxPropName", name::kSource);
    answer.set("OfxPropTime", arguments.real("OfxPropTime").value_or(0));
    return kOk;
}

Status frames_needed(Effect effect, const Properties &arguments, const Properties &answer) {
    double time = arguments.real("OfxPropTime").value_or(0), first = time, last = time;
    if (work_of(effect, the_host).way == Way::frames) {
        Properties clip = properties_of(clip_named(effect, name::kSource));
        first = std::min(std::max(time - kWindow, clip.real("OfxImageEffectPropFrameRange", 0).value_or(time)), time);
        last = std::max(std::min(time + kWindow, clip.real("OfxImageEffectPropFrameRange", 1).value_or(time)), time);
    }
    answer.set("OfxImageClipPropFrameRange_Source", first, 0);
    answer.set("OfxImageClipPropFrameRange_Source", last, 1);
    return kOk;
}

// The whole source, asked for and drawn: its size tells where the frame lies.
Status region(Effect effect, const Properties &arguments, const Properties &answer, const char *property) {
    RectD whole{};
    double time = arguments.real("OfxPropTime").value_or(0);
    if (suites().effects->clipGetRegionOfDefinition(clip_named(effect, name::kSource), time, &whole) != kOk)
        return kReplyDefault;
    int index = 0;
    for (double edge : {whole.x1, whole.y1, whole.x2, whole.y2}) answer.set(property, edge, index++);
    return kOk;
}

Status create(Effect effect) {
    properties_of(effect).set("OfxPropInstanceData", new Instance);
    return kOk;
}

Status destroy(Effect effect) {
    delete instance_of(effect);
    properties_of(effect).set("OfxPropInstanceData", static_cast<void *>(nullptr));
    return kOk;
}

Status act(const std::string &action, Effect effect, const Properties &arguments, const Properties &answer) {
    if (action == "OfxActionLoad") return fetch_suites(the_host) ? kOk : kErrMissingHostFeature;
    if (action == "OfxActionUnload") {
        drop_clips();
        return kOk;
    }
    if (action == "OfxActionDescribe") return describe(effect);
    if (action == "OfxImageEffectActionDescribeInContext") return describe_in_context(effect);
    if (action == "OfxActionCreateInstance") return create(effect);
    if (action == "OfxActionDestroyInstance") return destroy(effect);
    if (action == "OfxActionInstanceChanged") return changed(effect, arguments);
    if (action == "OfxImageEffectActionRender") return render(effect, arguments);
    if (action == "OfxImageEffectActionIsIdentity") return is_identity(effect, arguments, answer);
    if (action == "OfxImageEffectActionGetFramesNeeded") return frames_needed(effect, arguments, answer);
    if (action == "OfxImageEffectActionGetRegionOfDefinition")
        return region(effect, arguments, answer, "OfxImageEffectPropRegionOfDefinition");
    if (action == "OfxImageEffectActionGetRegionsOfInterest")
        return region(effect, arguments, answer, "OfxImageClipPropRoI_Source");
    if (action == "OfxImageEffectActionBeginSequenceRender" || action == "OfxImageEffectActionEndSequenceRender") return kOk;
    return kReplyDefault;
}

Status entry(const char *action, const void *handle, PropertySet in, PropertySet out) {
    try {
        return act(action, static_cast<Effect>(const_cast<void *>(handle)), Properties(in), Properties(out));
    } catch (const std::bad_alloc &) {
        return kErrMemory;
    } catch (const std::exception &) {
        return kFailed;
    }
}

void set_host(Host *host) { the_host = host; }

Plugin plugin{"OfxImageEffectPluginAPI", 1, "org.vs3r.Stabilize", 1, 0, set_host, entry};

} // namespace
} // namespace vs3r::ofx

extern "C" {
__attribute__((visibility("default"))) int OfxGetNumberOfPlugins() { return 1; }
__attribute__((visibility("default"))) vs3r::ofx::Plugin *OfxGetPlugin(int nth) {
    return nth == 0 ? &vs3r::ofx::plugin : nullptr;
}
__attribute__((visibility("default"))) int OfxSetHost(const vs3r::ofx::Host *host) {
    vs3r::ofx::the_host = host;
    return vs3r::ofx::kOk;
}
}
