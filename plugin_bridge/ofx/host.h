// The host's side, as far as it can be trusted: any property may be absent, and some suites.
#pragma once

#include <optional>
#include <string>

#include "ofx_abi.h"

namespace vs3r::ofx {

// What the host offers; the last four may be null.
struct Suites {
    const PropertySuiteV1 *properties = nullptr;
    const ImageEffectSuiteV1 *effects = nullptr;
    const ParameterSuiteV1 *parameters = nullptr;
    const MessageSuiteV1 *message = nullptr;
    const MessageSuiteV2 *persistent_message = nullptr;
    const ProgressSuiteV1 *progress = nullptr;
    const ProgressSuiteV2 *named_progress = nullptr;
};

// Of the host that was given last.
const Suites &suites();
// False where the host lacks what no effect can do without.
bool fetch_suites(const Host *host);

// A set of properties. What the host does not know is not set, and read as absent.
class Properties {
public:
    explicit Properties(PropertySet set) : set_(set) {}

    void set(const char *name, const char *value, int index = 0) const;
    void set(const char *name, double value, int index = 0) const;
    void set(const char *name, int value, int index = 0) const;
    void set(const char *name, void *value) const;

    std::optional<std::string> text(const char *name) const;
    std::optional<double> real(const char *name, int index = 0) const;
    std::optional<int> integer(const char *name, int index = 0) const;
    void *pointer(const char *name) const;
    std::optional<RectI> rectangle(const char *name) const;

private:
    PropertySet set_;
};

// The parameters of one instance. What the host does not have reads as empty or 0.
class Parameters {
public:
    explicit Parameters(Effect effect);

    std::string text(const char *name) const;
    double real(const char *name) const;
    int integer(const char *name) const;
    void set_text(const char *name, const std::string &value) const;

private:
    Param handle(const char *name) const;

    ParamSet set_ = nullptr;
};

Properties properties_of(Effect effect);
Properties properties_of(ImageClip clip);

} // namespace vs3r::ofx
