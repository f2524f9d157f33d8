// The MLT filter "vs3r": Kdenlive, Shotcut, melt. filter_vs3r.yml describes it, docs/nle.md tells how it is used.
#include <dlfcn.h>
#include <framework/mlt.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "clip.h"
#include "track.h"

namespace {

using vs3r::Clip;
using vs3r::SavedTrack;
using vs3r::Settings;
using vs3r::State;

constexpr auto kAll = std::numeric_limits<std::int64_t>::max();
// Sides of proxies are rounded, to as much as 16 pixels.
constexpr double kProxyStretch = 0.05;

// What is asked below for a host that wants `format`. MLT has pictures deeper than 8 bits with alpha since 7.34.
#if LIBMLT_VERSION_INT >= (7 << 16) + (34 << 8)
mlt_image_format worked_in(mlt_image_format format) {
    bool is_deep = format == mlt_image_rgba64 || format == mlt_image_yuv422p16 || format == mlt_image_yuv420p10 ||
                   format == mlt_image_yuv444p10;
    return is_deep ? mlt_image_rgba64 : mlt_image_rgba;
}
#else
mlt_image_format worked_in(mlt_image_format) { return mlt_image_rgba; }
#endif

std::string text_of(mlt_properties properties, const char *name) {
    const char *value = mlt_properties_get(properties, name);
    return value == nullptr ? "" : value;
}

// The file below a frame, which of its frames is shown, and how it lies in the picture.
struct Source {
    std::string media;
    std::int64_t index = 0;
    double display_aspect = 0; // Width over height as shown, 0 when unknown.
    int rotation_deg = 0;      // Clockwise, already done by the host.
    bool is_proxy = false;     // The host shows a smaller copy of it.
};

// Multiples of a quarter turn that the host's decoder undoes.
int rotation(mlt_properties producer) {
    if (mlt_properties_get(producer, "autorotate") != nullptr && !mlt_properties_get_int(producer, "autorotate"))
        return 0;
    std::string name = "meta.media." + std::to_string(mlt_properties_get_int(producer, "video_index")) + ".codec.rotate";
    return ((mlt_properties_get_int(producer, name.c_str()) % 360) + 360) % 360;
}

// The file that an editor shows a proxy of, as Kdenlive and Shotcut note it; null where there is none.
char *original_of(mlt_properties producer) {
    for (const char *name : {"kdenlive:originalurl", "shotcut:resource"}) {
        std::string original = text_of(producer, name);
        char *real = original.empty() ? nullptr : realpath(original.c_str(), nullptr);
        if (real != nullptr) return real;
    }
    return nullptr;
}

// The clip's frame, where a link of its chain maps the time: "Time remap" of the editors.
std::optional<std::int64_t> remapped(mlt_frame frame, double own_rate) {
    std::optional<std::int64_t> found;
    mlt_deque passed = MLT_FRAME_SERVICE_STACK(frame);
    // Once around: it cannot be read otherwise.
    for (int i = mlt_deque_count(passed); i > 0; --i) {
        auto service = static_cast<mlt_service>(mlt_deque_pop_front(passed));
        mlt_deque_push_back(passed, service);
        if (mlt_service_identify(service) != mlt_service_link_type) continue;
        mlt_properties noted = mlt_frame_get_unique_properties(frame, service);
        double rate = noted == nullptr ? 0 : mlt_properties_get_double(noted, "source_fps");
        // As the link counts.
        if (rate > 0)
            found = std::llround(std::floor(mlt_properties_get_double(noted, "source_time") * rate) * own_rate / rate);
    }
    return found;
}

Source source_of(mlt_frame frame) {
    Source source;
    mlt_producer producer = mlt_frame_get_original_producer(frame);
    if (producer == nullptr) return source;
    mlt_properties properties = MLT_PRODUCER_PROPERTIES(mlt_producer_cut_parent(producer));
    double speed = 1;
    std::string media = text_of(properties, "resource");
    std::int64_t position = mlt_frame_original_position(frame);
    if (text_of(properties, "mlt_service") == "timewarp") {
        media = text_of(properties, "warp_resource");
        speed = mlt_properties_get_double(properties, "warp_speed");
        if (speed < 0) position = mlt_properties_get_int(properties, "length") - 1 - position;
    }
    char *real = original_of(properties);
    source.is_proxy = real != nullptr;
    if (real == nullptr) real = realpath(media.c_str(), nullptr);
    if (real == nullptr) return source;
    char *shown = realpath(media.c_str(), nullptr);
    if (shown != nullptr && std::strcmp(shown, real) == 0) source.is_proxy = false;
    std::free(shown);
    source.media = real;
    std::free(real);
    double own_rate = mlt_properties_get_double(properties, "meta.media.frame_rate_num") /
                      std::max(mlt_properties_get_double(properties, "meta.media.frame_rate_den"), 1.0);
    double host_rate = mlt_producer_get_fps(producer);
    double ratio = own_rate > 0 && host_rate > 0 ? own_rate / host_rate : 1;
    // As MLT's own decoder counts.
    source.index = static_cast<std::int64_t>(std::floor(static_cast<double>(position) * std::abs(speed) * ratio + 0.5));
    if (own_rate > 0) source.index = remapped(frame, own_rate).value_or(source.index);
    source.rotation_deg = rotation(properties);
    double width = mlt_properties_get_double(properties, "meta.media.width");
    double height = mlt_properties_get_double(properties, "meta.media.height");
    double aspect = mlt_properties_get_double(properties, "aspect_ratio");
    if (width > 0 && height > 0) source.display_aspect = width / height * (aspect > 0 ? aspect : 1);
    return source;
}

Settings settings_of(mlt_properties properties, const std::string &media, const SavedTrack *track) {
    Settings settings;
    settings.media = media;
    if (track != nullptr) {
        settings.track = track->name;
        settings.track_of = text_of(properties, "results");
        settings.track_bytes = track->bytes;
    }
    settings.address = text_of(properties, "engine");
    settings.smoothness = mlt_properties_get_double(properties, "smoothness");
    settings.frame_limit = mlt_properties_get_double(properties, "frame_limit");
    settings.camera = text_of(properties, "camera");
    settings.fill = text_of(properties, "fill");
    return settings;
}

// One per filter: keeps its clip alive between frames.
class Holder {
public:
    std::shared_ptr<Clip> clip(const Settings &settings) {
        std::lock_guard<std::mutex> held(lock_);
        if (clip_ == nullptr || settings < settings_ || settings_ < settings) {
            clip_ = vs3r::find_clip(settings);
            settings_ = settings;
        }
        return clip_;
    }

    // The track in a file; null where that is not there, or empty as Shotcut makes it beforehand: the engine may know the
    // clip as well.
    std::shared_ptr<const SavedTrack> track(const std::string &path) {
        std::lock_guard<std::mutex> held(lock_);
        std::string stamp = path.empty() ? "" : vs3r::file_stamp(path);
        if (stamp != stamp_) {
            track_ = nullptr;
            stamp_.clear(); // One that cannot be read is an error at every frame.
            if (!stamp.empty()) track_ = vs3r::load_track(path);
            if (track_ != nullptr && track_->bytes->empty()) track_ = nullptr;
            stamp_ = stamp;
        }
        return track_;
    }

    // True once.
    bool start() {
        std::lock_guard<std::mutex> held(lock_);
        return !std::exchange(is_started_, true);
    }

    // What `end` gives, which is asked once: MLT shows the last frame again.
    std::string outcome(const std::function<std::string()> &end) {
        std::lock_guard<std::mutex> held(lock_);
        if (!outcome_) outcome_ = end();
        return *outcome_;
    }

private:
    std::mutex lock_;
    Settings settings_;
    std::shared_ptr<Clip> clip_;
    std::shared_ptr<const SavedTrack> track_;
    std::string stamp_;
    std::optional<std::string> outcome_;
    bool is_started_ = false;
};

// The part of a picture that the source fills: the host puts bars around it where the shapes differ.
struct Rectangle {
    int left, top, width, height;
};

Rectangle content(mlt_frame frame, const Source &source, int width, int height) {
    double aspect = mlt_frame_get_aspect_ratio(frame);
    double shown = static_cast<double>(width) / height * (aspect > 0 ? aspect : 1);
    bool is_stretched = mlt_properties_get_int(MLT_FRAME_PROPERTIES(frame), "distort") != 0;
    int inner_width = width, inner_height = height;
    if (source.display_aspect > 0 && !is_stretched) {
        if (source.display_aspect < shown) inner_width = static_cast<int>(std::lround(width * source.display_aspect / shown));
        if (source.display_aspect > shown)
            inner_height = static_cast<int>(std::lround(height * shown / source.display_aspect));
    }
    inner_width = std::clamp(inner_width, 1, width);
    inner_height = std::clamp(inner_height, 1, height);
    // Shapes that differ by less than a pixel or two are roundings of the same.
    if (width - inner_width < 2) inner_width = width;
    if (height - inner_height < 2) inner_height = height;
    return {(width - inner_width) / 2, (height - inner_height) / 2, inner_width, inner_height};
}

// FFmpeg, by which MLT turns deep RGB into YUV and back, takes 255 * 256 for white.
std::uint8_t as_host(std::uint8_t value) { return value; }
std::uint16_t as_host(std::uint16_t value) { return static_cast<std::uint16_t>((value * 256u + 128u) / 257u); }

// Colour goes over the host's picture; its alpha stays. The picture is as large as the place, when turned.
template <typename Sample>
void lay(const vs3r::Picture &picture, int turn, std::uint8_t *to, int width, const Rectangle &at) {
    const auto *pixels = reinterpret_cast<const Sample *>(picture.bytes.data());
    auto *image = reinterpret_cast<Sample *>(to);
    for (int y = 0; y < at.height; ++y)
        for (int x = 0; x < at.width; ++x) {
            int column = x, row = y;
            if (turn == 90) column = y, row = picture.height - 1 - x;
            if (turn == 180) column = picture.width - 1 - x, row = picture.height - 1 - y;
            if (turn == 270) column = picture.width - 1 - y, row = x;
            const Sample *from = pixels + 4 * (static_cast<std::ptrdiff_t>(row) * picture.width + column);
            Sample *out = image + 4 * (static_cast<std::ptrdiff_t>(at.top + y) * width + at.left + x);
            for (int c = 0; c < 3; ++c) out[c] = as_host(from[c]);
        }
}

// What an analysis leaves in the project, and where it is asked to. Gives the status.
std::string finish(mlt_properties properties, Clip &clip) {
    if (clip.state() != State::ready) throw vs3r::Error(clip.status());
    std::string filename = text_of(properties, "filename");
    if (!filename.empty()) {
        auto bytes = clip.track(nullptr);
        if (bytes == nullptr)
            throw vs3r::Error("the engine has lost the clip's analysis: '" + filename +
                              "' is not written; analyse it again");
        vs3r::save_track(*bytes, filename);
    }
    mlt_properties_set(properties, "results", clip.identity().c_str());
    return clip.status();
}

// Analysis keeps pace with the host's frames, so that its progress is the host's. Gives the status.
std::string analyse(mlt_filter filter, mlt_frame frame, Holder &holder, Clip &clip, const Source &source) {
    if (holder.start()) clip.analyse();
    bool is_last = mlt_filter_get_position(filter, frame) + 1 >= mlt_filter_get_length2(filter, frame);
    clip.wait(is_last ? kAll : source.index, nullptr);
    if (!is_last) return clip.status();
    return holder.outcome([&]() -> std::string {
        try {
            return finish(MLT_FILTER_PROPERTIES(filter), clip);
        } catch (const vs3r::Error &failure) {
            mlt_log_error(MLT_FILTER_SERVICE(filter), "%s\n", failure.what());
            return failure.what();
        }
    });
}

std::shared_ptr<const vs3r::Picture> stabilized(mlt_properties properties, Clip &clip, const Source &source,
                                                const Rectangle &at, vs3r::Depth depth) {
    if (text_of(properties, "unanalysed") == "wait") {
        // Looks first whether it is there already.
        if (clip.state() == State::unknown || clip.state() == State::not_analysed) clip.analyse();
        clip.wait(kAll, nullptr);
    }
    bool is_turned = source.rotation_deg == 90 || source.rotation_deg == 270;
    vs3r::Shape shape{is_turned ? at.height : at.width, is_turned ? at.width : at.height, depth};
    if (source.is_proxy) {
        shape.pixel_aspect = source.display_aspect * at.height / at.width;
        shape.stretch = kProxyStretch;
    }
    auto picture = clip.frame(source.index, shape, nullptr);
    if (picture != nullptr && (picture->width != shape.width || picture->height != shape.height))
        throw vs3r::Error("the proxy has another shape than its file, which may be turned: the source passes through");
    return picture;
}

void tell(mlt_filter filter, const std::string &status) {
    mlt_properties_set(MLT_FILTER_PROPERTIES(filter), "status", status.c_str());
}

void fail(mlt_filter filter, const std::string &failure) {
    mlt_log_error(MLT_FILTER_SERVICE(filter), "%s\n", failure.c_str());
    tell(filter, failure);
}

// The clip whose picture is to be drawn; null where the source's passes through. The status says why.
std::shared_ptr<Clip> clip_of(mlt_filter filter, mlt_frame frame, const Source &source) {
    mlt_properties properties = MLT_FILTER_PROPERTIES(filter);
    auto &holder = *static_cast<Holder *>(filter->child);
    if (source.media.empty()) {
        tell(filter, "no video file below: the picture passes through; put the effect on a clip");
        return nullptr;
    }
    // While it is made anew, the old one does not count.
    bool is_analysis = mlt_properties_get_int(properties, "analyze") != 0;
    auto track = is_analysis ? nullptr : holder.track(text_of(properties, "filename"));
    std::shared_ptr<Clip> clip = holder.clip(settings_of(properties, source.media, track.get()));
    if (mlt_properties_get_int(properties, "reload")) {
        mlt_properties_set_int(properties, "reload", 0);
        clip->reload();
    }
    if (!is_analysis) return clip;
    tell(filter, analyse(filter, frame, holder, *clip, source));
    return nullptr;
}

// Whatever comes, there is a picture: the source's, until something better is there.
int get_image(mlt_frame frame, std::uint8_t **image, mlt_image_format *format, int *width, int *height, int writable) {
    auto filter = static_cast<mlt_filter>(mlt_frame_pop_service(frame));
    Source source;
    std::shared_ptr<Clip> clip;
    try {
        source = source_of(frame);
        clip = clip_of(filter, frame, source);
    } catch (const std::exception &failure) {
        fail(filter, std::string(failure.what()) + " (the source passes through)");
    }
    if (clip == nullptr) return mlt_frame_get_image(frame, image, format, width, height, writable);
    const mlt_image_format wanted = worked_in(*format);
    *format = wanted;
    int error = mlt_frame_get_image(frame, image, format, width, height, 1);
    if (error != 0 || *format != wanted) return error;
    try {
        Rectangle at = content(frame, source, *width, *height);
        bool is_deep = wanted != mlt_image_rgba;
        auto depth = is_deep ? vs3r::Depth::half_word : vs3r::Depth::byte;
        auto picture = stabilized(MLT_FILTER_PROPERTIES(filter), *clip, source, at, depth);
        const auto draw = is_deep ? lay<std::uint16_t> : lay<std::uint8_t>;
        if (picture != nullptr) draw(*picture, source.rotation_deg, *image, *width, at);
        tell(filter, clip->status());
    } catch (const std::exception &failure) {
        fail(filter, clip->state() == State::failed ? clip->status() : failure.what());
    }
    return 0;
}

mlt_frame process(mlt_filter filter, mlt_frame frame) {
    mlt_frame_push_service(frame, filter);
    mlt_frame_push_get_image(frame, get_image);
    return frame;
}

void close_filter(mlt_filter filter) {
    delete static_cast<Holder *>(filter->child);
    filter->child = nullptr;
    filter->close = nullptr;
    filter->parent.close = nullptr;
    mlt_service_close(&filter->parent);
}

void *create(mlt_profile, mlt_service_type, const char *, const void *) {
    mlt_filter filter = mlt_filter_new();
    if (filter == nullptr) return nullptr;
    filter->child = new (std::nothrow) Holder;
    if (filter->child == nullptr) {
        mlt_filter_close(filter);
        return nullptr;
    }
    filter->process = process;
    filter->close = close_filter;
    mlt_properties properties = MLT_FILTER_PROPERTIES(filter);
    const Settings defaults;
    mlt_properties_set_double(properties, "smoothness", defaults.smoothness);
    mlt_properties_set_double(properties, "frame_limit", defaults.frame_limit);
    mlt_properties_set(properties, "camera", defaults.camera.c_str());
    mlt_properties_set(properties, "fill", defaults.fill.c_str());
    mlt_properties_set(properties, "unanalysed", "pass");
    return filter;
}

// filter_vs3r.yml lies beside the module, or beside what the module is a link to.
mlt_properties metadata(mlt_service_type, const char *, void *) {
    Dl_info info;
    if (dladdr(reinterpret_cast<void *>(&metadata), &info) == 0) return nullptr;
    char *real = realpath(info.dli_fname, nullptr);
    std::string library = real != nullptr ? real : info.dli_fname;
    std::free(real);
    return mlt_properties_parse_yaml((library.substr(0, library.rfind('/') + 1) + "filter_vs3r.yml").c_str());
}

} // namespace

extern "C" __attribute__((visibility("default"))) MLT_REPOSITORY {
    MLT_REGISTER(mlt_service_filter_type, "vs3r", create);
    MLT_REGISTER_METADATA(mlt_service_filter_type, "vs3r", metadata, nullptr);
}
