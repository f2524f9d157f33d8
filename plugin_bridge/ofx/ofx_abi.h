// What crosses the border to an OpenFX host: the structures of the published specification (1.4, 1.5), and no more.
#pragma once

#include <cstddef>

namespace vs3r::ofx {

using Status = int;
constexpr Status kOk = 0, kFailed = 1, kErrFatal = 2, kErrUnknown = 3, kErrMissingHostFeature = 4, kErrUnsupported = 5,
                 kErrExists = 6, kErrFormat = 7, kErrMemory = 8, kErrBadHandle = 9, kErrBadIndex = 10, kErrValue = 11,
                 kReplyYes = 12, kReplyNo = 13, kReplyDefault = 14, kErrImageFormat = 1000;

// Distinct types, so that the compiler tells one handle from another.
using PropertySet = struct PropertySetOpaque *;
using Effect = struct EffectOpaque *;
using ImageClip = struct ImageClipOpaque *;
using ImageMemory = struct ImageMemoryOpaque *;
using Param = struct ParamOpaque *;
using ParamSet = struct ParamSetOpaque *;
using Mutex = struct MutexOpaque *;
using Time = double;

struct RectI { int x1, y1, x2, y2; };
struct RectD { double x1, y1, x2, y2; };
struct RangeD { double min, max; };

struct Host {
    PropertySet host;
    const void *(*fetchSuite)(PropertySet host, const char *name, int version);
};

using SetHost = void(Host *);
using Entry = Status(const char *action, const void *handle, PropertySet in, PropertySet out);

struct Plugin {
    const char *pluginApi; // "OfxImageEffectPluginAPI"
    int apiVersion;        // 1
    const char *pluginIdentifier;
    unsigned int pluginVersionMajor, pluginVersionMinor;
    SetHost *setHost;
    Entry *mainEntry;
};

struct PropertySuiteV1 {
    Status (*setPointer)(PropertySet, const char *name, int index, void *value);
    Status (*setString)(PropertySet, const char *name, int index, const char *value);
    Status (*setDouble)(PropertySet, const char *name, int index, double value);
    Status (*setInt)(PropertySet, const char *name, int index, int value);
    Status (*setPointerN)(PropertySet, const char *name, int count, void *const *values);
    Status (*setStringN)(PropertySet, const char *name, int count, const char *const *values);
    Status (*setDoubleN)(PropertySet, const char *name, int count, const double *values);
    Status (*setIntN)(PropertySet, const char *name, int count, const int *values);
    Status (*getPointer)(PropertySet, const char *name, int index, void **value);
    Status (*getString)(PropertySet, const char *name, int index, char **value);
    Status (*getDouble)(PropertySet, const char *name, int index, double *value);
    Status (*getInt)(PropertySet, const char *name, int index, int *value);
    Status (*getPointerN)(PropertySet, const char *name, int count, void **values);
    Status (*getStringN)(PropertySet, const char *name, int count, char **values);
    Status (*getDoubleN)(PropertySet, const char *name, int count, double *values);
    Status (*getIntN)(PropertySet, const char *name, int count, int *values);
    Status (*reset)(PropertySet, const char *name);
    Status (*getDimension)(PropertySet, const char *name, int *count);
};

struct ImageEffectSuiteV1 {
    Status (*getPropertySet)(Effect, PropertySet *);
    Status (*getParamSet)(Effect, ParamSet *);
    Status (*clipDefine)(Effect, const char *name, PropertySet *);
    Status (*clipGetHandle)(Effect, const char *name, ImageClip *, PropertySet *);
    Status (*clipGetPropertySet)(ImageClip, PropertySet *);
    Status (*clipGetImage)(ImageClip, Time, const RectD *region, PropertySet *image);
    Status (*clipReleaseImage)(PropertySet image);
    Status (*clipGetRegionOfDefinition)(ImageClip, Time, RectD *);
    int (*abort)(Effect);
    Status (*imageMemoryAlloc)(Effect, std::size_t, ImageMemory *);
    Status (*imageMemoryFree)(ImageMemory);
    Status (*imageMemoryLock)(ImageMemory, void **);
    Status (*imageMemoryUnlock)(ImageMemory);
};

struct ParameterSuiteV1 {
    Status (*define)(ParamSet, const char *type, const char *name, PropertySet *);
    Status (*getHandle)(ParamSet, const char *name, Param *, PropertySet *);
    Status (*setGetPropertySet)(ParamSet, PropertySet *);
    Status (*getPropertySet)(Param, PropertySet *);
    Status (*getValue)(Param, ...);
    Status (*getValueAtTime)(Param, Time, ...);
    Status (*getDerivative)(Param, Time, ...);
    Status (*getIntegral)(Param, Time from, Time to, ...);
    Status (*setValue)(Param, ...);
    Status (*setValueAtTime)(Param, Time, ...);
    Status (*getNumKeys)(Param, unsigned int *);
    Status (*getKeyTime)(Param, unsigned int nth, Time *);
    Status (*getKeyIndex)(Param, Time, int direction, int *);
    Status (*deleteKey)(Param, Time);
    Status (*deleteAllKeys)(Param);
    Status (*copy)(Param to, Param from, Time offset, const RangeD *range);
    Status (*editBegin)(ParamSet, const char *name);
    Status (*editEnd)(ParamSet);
};

struct MemorySuiteV1 {
    Status (*alloc)(void *handle, std::size_t, void **);
    Status (*free)(void *);
};

struct MultiThreadSuiteV1 {
    Status (*multiThread)(void (*function)(unsigned int index, unsigned int count, void *), unsigned int count, void *);
    Status (*numCPUs)(unsigned int *);
    Status (*index)(unsigned int *);
    int (*isSpawnedThread)();
    Status (*mutexCreate)(Mutex *, int lock_count);
    Status (*mutexDestroy)(Mutex);
    Status (*mutexLock)(Mutex);
    Status (*mutexUnLock)(Mutex);
    Status (*mutexTryLock)(Mutex);
};

struct MessageSuiteV1 {
    Status (*message)(void *handle, const char *type, const char *id, const char *format, ...);
};

struct MessageSuiteV2 {
    Status (*message)(void *handle, const char *type, const char *id, const char *format, ...);
    Status (*setPersistentMessage)(void *handle, const char *type, const char *id, const char *format, ...);
    Status (*clearPersistentMessage)(void *handle);
};

struct ProgressSuiteV1 {
    Status (*start)(void *effect, const char *label);
    Status (*update)(void *effect, double share); // kReplyNo: the user has cancelled.
    Status (*end)(void *effect);
};

struct ProgressSuiteV2 {
    Status (*start)(void *effect, const char *message, const char *id);
    Status (*update)(void *effect, double share);
    Status (*end)(void *effect);
};

struct TimeLineSuiteV1 {
    Status (*getTime)(void *effect, double *);
    Status (*gotoTime)(void *effect, double);
    Status (*getTimeBounds)(void *effect, double *first, double *last);
};

// On 64-bit machines; no other is built for.
static_assert(sizeof(void *) == 8 && sizeof(int) == 4);
static_assert(sizeof(Host) == 16 && offsetof(Host, fetchSuite) == 8);
static_assert(sizeof(Plugin) == 48 && offsetof(Plugin, pluginApi) == 0 && offsetof(Plugin, apiVersion) == 8);
static_assert(offsetof(Plugin, pluginIdentifier) == 16 && offsetof(Plugin, pluginVersionMajor) == 24);
static_assert(offsetof(Plugin, pluginVersionMinor) == 28 && offsetof(Plugin, setHost) == 32);
static_assert(offsetof(Plugin, mainEntry) == 40);
static_assert(sizeof(RectI) == 16 && sizeof(RectD) == 32 && sizeof(RangeD) == 16);
static_assert(sizeof(PropertySuiteV1) == 18 * 8 && offsetof(PropertySuiteV1, getPointer) == 8 * 8);
static_assert(offsetof(PropertySuiteV1, getDimension) == 17 * 8);
static_assert(sizeof(ImageEffectSuiteV1) == 13 * 8 && offsetof(ImageEffectSuiteV1, clipGetImage) == 5 * 8);
static_assert(offsetof(ImageEffectSuiteV1, abort) == 8 * 8);
static_assert(sizeof(ParameterSuiteV1) == 18 * 8 && offsetof(ParameterSuiteV1, getValue) == 4 * 8);
static_assert(offsetof(ParameterSuiteV1, setValue) == 8 * 8 && offsetof(ParameterSuiteV1, editEnd) == 17 * 8);
static_assert(sizeof(MemorySuiteV1) == 16 && sizeof(MultiThreadSuiteV1) == 9 * 8);
static_assert(sizeof(MessageSuiteV1) == 8 && sizeof(MessageSuiteV2) == 24);
static_assert(sizeof(ProgressSuiteV1) == 24 && sizeof(ProgressSuiteV2) == 24 && sizeof(TimeLineSuiteV1) == 24);

} // namespace vs3r::ofx
