#include "describe.h"

#include <algorithm>
#include <cstddef>

#include "clip.h"

namespace vs3r::ofx {
namespace {

struct Choice {
    const char *value, *label;
};

constexpr Choice kFills[] = {{"fill", "Neighbours, the rest painted in"}, {"none", "Neighbours only"}};
constexpr Choice kCameras[] = {
    {"pinhole", "As filmed"},          {"wide", "Wide"},          {"ultra-wide", "Ultra wide"},
    {"tele", "Tele"},                  {"fisheye", "Fisheye"},    {"ucm", "Unified (ucm)"},
    {"double-sphere", "Double sphere"},
};
constexpr Choice kUnanalysed[] = {{"pass", "Pass through"}, {"wait", "Wait for the analysis"}};

template <std::size_t count> const char *nth(const Choice (&choices)[count], int index) {
    return choices[std::clamp(index, 0, static_cast<int>(count) - 1)].value;
}

class Page {
public:
    explicit Page(Effect effect) { suites().effects->getParamSet(effect, &set_); }

    Properties define(const char *type, const char *name, const char *label, const char *hint) const {
        PropertySet made = nullptr;
        if (suites().parameters->define(set_, type, name, &made) != kOk) made = nullptr;
        Properties properties(made);
        if (made == nullptr) return properties;
        properties.set("OfxPropLabel", label);
        properties.set("OfxPropShortLabel", label);
        properties.set("OfxPropLongLabel", label);
        properties.set("OfxParamPropScriptName", name);
        properties.set("OfxParamPropHint", hint);
        properties.set("OfxParamPropAnimates", 0);
        return properties;
    }

    void share(const char *name, const char *label, const char *hint, double standard) const {
        Properties properties = define("OfxParamTypeDouble", name, label, hint);
        properties.set("OfxParamPropDefault", standard);
        for (const char *low : {"OfxParamPropMin", "OfxParamPropDisplayMin"}) properties.set(low, 0.0);
        for (const char *high : {"OfxParamPropMax", "OfxParamPropDisplayMax"}) properties.set(high, 1.0);
        properties.set("OfxParamPropIncrement", 0.01);
        properties.set("OfxParamPropDigits", 2);
    }

    template <std::size_t count>
    void choice(const char *name, const char *label, const char *hint, const Choice (&choices)[count]) const {
        Properties properties = define("OfxParamTypeChoice", name, label, hint);
        for (std::size_t i = 0; i < count; ++i)
            properties.set("OfxParamPropChoiceOption", choices[i].label, static_cast<int>(i));
        properties.set("OfxParamPropDefault", 0);
    }

    Properties text(const char *name, const char *label, const char *hint, const char *mode) const {
        Properties properties = define("OfxParamTypeString", name, label, hint);
        properties.set("OfxParamPropStringMode", mode);
        properties.set("OfxParamPropDefault", "");
        return properties;
    }

private:
    ParamSet set_ = nullptr;
};

} // namespace

Status describe(Effect effect) {
    Properties properties = properties_of(effect);
    properties.set("OfxPropLabel", "VS3R stabilize");
    properties.set("OfxPropShortLabel", "VS3R");
    properties.set("OfxPropLongLabel", "VS3R full-frame stabilization");
    properties.set("OfxPropPluginDescription",
                   "Stabilizes a clip without cropping it. Put it on the clip, before other effects, and press Analyse.");
    properties.set("OfxImageEffectPluginPropGrouping", "VS3R");
    properties.set("OfxImageEffectPropSupportedContexts", "OfxImageEffectContextFilter", 0);
    properties.set("OfxImageEffectPropSupportedContexts", "OfxImageEffectContextGeneral", 1);
    int index = 0;
    for (const char *depth : {"OfxBitDepthByte", "OfxBitDepthShort", "OfxBitDepthHalf", "OfxBitDepthFloat"})
        properties.set("OfxImageEffectPropSupportedPixelDepths", depth, index++);
    properties.set("OfxImageEffectPropSupportsTiles", 0);
    properties.set("OfxImageEffectPropSupportsMultiResolution", 1);
    properties.set("OfxImageEffectPropTemporalClipAccess", 1);
    properties.set("OfxImageEffectPropMultipleClipDepths", 0);
    properties.set("OfxImageEffectPluginPropSingleInstance", 0);
    properties.set("OfxImageEffectPluginPropHostFrameThreading", 0);
    properties.set("OfxImageEffectPluginPropFieldRenderTwiceAlways", 0);
    properties.set("OfxImageEffectPluginRenderThreadSafety", "OfxImageEffectRenderFullySafe");
    return kOk;
}

Status describe_in_context(Effect effect) {
    for (const char *clip : {name::kSource, name::kOutput}) {
        PropertySet made = nullptr;
        if (suites().effects->clipDefine(effect, clip, &made) != kOk) return kErrMissingHostFeature;
        Properties properties(made);
        properties.set("OfxImageEffectPropSupportedComponents", "OfxImageComponentRGBA");
        properties.set("OfxImageEffectPropSupportsTiles", 0);
        properties.set("OfxImageEffectPropTemporalClipAccess", clip == std::string(name::kSource) ? 1 : 0);
    }
    const Settings defaults;
    Page page(effect);
    page.define("OfxParamTypePushButton", name::kAnalyse, "Analyse", "Recovers the camera's path, once for every clip.");
    Properties status = page.text(name::kStatus, "Status", "What is going on, and why a picture passes through.",
                                  "OfxParamStringIsSingleLine");
    status.set("OfxParamPropEnabled", 0);
    status.set("OfxParamPropPersistant", 0);
    page.share(name::kSmoothness, "Smoothness", "How steady the virtual camera is. 0 keeps the shake, 1 is nearly a tripod.",
               defaults.smoothness);
    page.share(name::kLimit, "Strength of frame limit",
               "The part of every picture that its own source frame must cover.", defaults.frame_limit);
    page.choice(name::kFill, "Fill", "What is done about the parts that the frame itself did not see.", kFills);
    page.choice(name::kCamera, "Output camera",
                "As filmed keeps the lens; wide, ultra wide and tele change its focal length; the others bend it.", kCameras);
    page.choice(name::kUnanalysed, "When not analysed", "What a render does before the analysis is done.", kUnanalysed);
    page.text(name::kFile, "Source file",
              "The clip's file, where the host does not tell it; empty: the host's own frames are taken.",
              "OfxParamStringIsFilePath");
    page.text(name::kTrackFile, "Track file",
              "A track that `vs3r analyze` has written: it is used for whatever clip this lies on, and nothing is analysed.",
              "OfxParamStringIsFilePath");
    page.define("OfxParamTypeBoolean", name::kEmbed, "Embed track in project",
                "Keeps the analysis in the project, a few kB a frame: for other machines and render farms.")
        .set("OfxParamPropDefault", 0);
    // Not secret: some hosts do not let those be set.
    page.text(name::kTrack, "Track", "The analysis, as the effect keeps it. Not to be edited.", "OfxParamStringIsSingleLine")
        .set("OfxParamPropEnabled", 0);
    Properties offset = page.define("OfxParamTypeInteger", name::kOffset, "Frame offset",
                                    "Added to the frame's number, where a host counts from elsewhere than the file.");
    offset.set("OfxParamPropDefault", 0);
    offset.set("OfxParamPropDisplayMin", -1000);
    offset.set("OfxParamPropDisplayMax", 1000);
    page.text(name::kEngine, "Engine address",
              "HOST:PORT or unix:PATH of a running engine; empty: one is started on this machine.",
              "OfxParamStringIsSingleLine");
    return kOk;
}

std::string fill_choice(int choice) { return nth(kFills, choice); }

std::string camera_choice(int choice) { return nth(kCameras, choice); }

} // namespace vs3r::ofx
