// The OpenFX plugin: Resolve, Nuke, Vegas, Natron, Flame. docs/nle.md tells how it is used.
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#include "clip.h"
#include "describe.h"
#include "host.h"
#include "image.h"

namespace vs3r::ofx {
namespace {

constexpr auto kAll = std::numeric_limits<std::int64_t>::max();
constexpr auto kLook = std::chrono::milliseconds(50);

const Host *the_host = nullptr;

// One per instance. Its clip may be another's too.
class Instance {
public:
    // The clip of these settings, kept alive until another is asked for.
    std::shared_ptr<Clip> clip(const Settings &settings) {
        std::shared_ptr<Clip> found = find_clip(settings), before = found;
        std::lock_guard<std::mutex> held(lock_);
        clip_.swap(before); // What was held before may end; outside of the lock.
        return found;
    }

    // True where it is not what was said last.
    bool says(const std::string &message) {
        std::lock_guard<std::mutex> held(lock_);
        if (message == message_) return false;
        message_ = message;
        return true;
    }

private:
    std::mutex lock_;
    std::shared_ptr<Clip> clip_;
    std::string message_;
};

Instance *instance_of(Effect effect) {
    return static_cast<Instance *>(properties_of(effect).pointer("OfxPropInstanceData"));
}

ImageClip clip_named(Effect effect, const char *name) {
    ImageClip clip = nullptr;
    suites().effects->clipGetHandle(effect, name, &clip, nullptr);
    return clip;
}

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

// The host's own word on the file goes first: a copied effect must not bind the file of another clip.
Settings settings_of(Effect effect) {
    Parameters parameters(effect);
    Settings settings;
    settings.media = properties_of(effect).text("OfxImageEffectPropSrcFilePath").value_or("");
    if (settings.media.empty()) settings.media = parameters.text(name::kFile);
    settings.address = parameters.text(name::kEngine);
    settings.smoothness = parameters.real(name::kSmoothness);
    settings.frame_limit = parameters.real(name::kLimit);
    settings.camera = camera_choice(parameters.integer(name::kCamera));
    settings.fill = fill_choice(parameters.integer(name::kFill));
    return settings;
}

// Which of the file's frames is shown at a time: the host's own word, or counted from the clip's start.
std::int64_t frame_index(Effect effect, ImageClip source, const Properties &arguments, Time time) {
    std::int64_t offset = Parameters(effect).integer(name::kOffset);
    if (auto frame = arguments.integer("OfxImageEffectPropSrcFrame")) return *frame + offset;
    Properties clip = properties_of(source);
    double first = clip.real("OfxImageEffectPropFrameRange").value_or(0);
    double rate = clip.real("OfxImageEffectPropFrameRate").value_or(0);
    double own_rate = clip.real("OfxImageEffectPropUnmappedFrameRate").value_or(0);
    double ratio = rate > 0 && own_rate > 0 ? own_rate / rate : 1;
    return static_cast<std::int64_t>(std::floor((time - first) * ratio + 0.5)) + offset;
}

bool is_thumbnail(const Properties &arguments) {
    return arguments.integer("OfxImageEffectPropThumbnailRender").value_or(0) != 0 ||
           arguments.text("OfxImageEffectPropThumbnailRender").value_or("") == "true";
}

const char *status_without_file() {
    return "no file is known: choose the clip's under Source file; the source passes through";
}

Status render(Effect effect, const Properties &arguments) {
    Instance &instance = *instance_of(effect);
    Time time = arguments.real("OfxPropTime").value_or(0);
    ImageClip source_clip = clip_named(effect, name::kSource);
    Image output(clip_named(effect, name::kOutput), time), source(source_clip, time);
    if (suites().effects->abort(effect) != 0) return kOk;
    if (!output || !source || output.channel() != source.channel()) return kErrImageFormat;
    RectI window = arguments.rectangle("OfxImageEffectPropRenderWindow").value_or(output.bounds());
    copy(source, output, window);
    Settings settings = settings_of(effect);
    if (settings.media.empty()) {
        tell(effect, instance, status_without_file());
        return kOk;
    }
    std::shared_ptr<Clip> clip = instance.clip(settings);
    Abort abort = [effect] { return suites().effects->abort(effect) != 0; };
    try {
        if (Parameters(effect).integer(name::kUnanalysed) == 1 && !is_thumbnail(arguments)) {
            // Looks first whether it is there already.
            if (clip->state() == State::unknown || clip->state() == State::not_analysed) clip->analyse();
            clip->wait(kAll, abort);
        }
        const RectI &whole = source.whole();
        double scale_x = arguments.real("OfxImageEffectPropRenderScale", 0).value_or(1);
        double scale_y = arguments.real("OfxImageEffectPropRenderScale", 1).value_or(1);
        double pixel_aspect = source.pixel_aspect() * (scale_x > 0 ? scale_y / scale_x : 1);
        Shape shape{whole.x2 - whole.x1, whole.y2 - whole.y1, depth_of(output.channel()), pixel_aspect};
        auto picture = clip->frame(frame_index(effect, source_clip, arguments, time), shape, abort);
        if (picture != nullptr) lay(*picture, source, output, window);
        tell(effect, instance, picture != nullptr ? "" : clip->status());
    } catch (const Aborted &) {
        return kOk;
    } catch (const Error &) {
        tell(effect, instance, clip->status());
    }
    return kOk;
}

// What the panel says. Only to be set while a parameter is being changed.
void show_status(Effect effect, const Settings &settings, const Clip *clip) {
    Parameters(effect).set_text(name::kStatus, settings.media.empty() ? status_without_file() : clip->status());
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
void analyse(Effect effect, Clip &clip) {
    clip.reload();
    clip.analyse();
    if (!Progress::is_offered()) return;
    Progress progress(effect);
    while (clip.state() == State::analysing) {
        if (!progress.update(clip.progress())) clip.cancel();
        std::this_thread::sleep_for(kLook);
    }
}

Status changed(Effect effect, const Properties &arguments) {
    // What this plugin sets itself comes back as a change, too.
    if (arguments.text("OfxPropChangeReason").value_or("") != "OfxChangeUserEdited") return kOk;
    Instance &instance = *instance_of(effect);
    Settings settings = settings_of(effect);
    std::shared_ptr<Clip> clip = settings.media.empty() ? nullptr : instance.clip(settings);
    if (clip != nullptr && arguments.text("OfxPropName").value_or("") == name::kAnalyse) analyse(effect, *clip);
    show_status(effect, settings, clip.get());
    return kOk;
}

// No smoothing and the lens as it is: the source.
Status is_identity(Effect effect, const Properties &arguments, const Properties &answer) {
    Settings settings = settings_of(effect);
    if (settings.smoothness > 0 || settings.camera != Settings().camera) return kReplyDefault;
    answer.set("OfxPropName", name::kSource);
    answer.set("OfxPropTime", arguments.real("OfxPropTime").value_or(0));
    return kOk;
}

Status frames_needed(const Properties &arguments, const Properties &answer) {
    double time = arguments.real("OfxPropTime").value_or(0);
    for (int i : {0, 1}) answer.set("OfxImageClipPropFrameRange_Source", time, i);
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
    if (action == "OfxImageEffectActionGetFramesNeeded") return frames_needed(arguments, answer);
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
