#include "host.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace vs3r::ofx {
namespace {

Suites fetched;

template <typename Suite> const Suite *fetch(const Host *host, const char *name, int version) {
    return static_cast<const Suite *>(host->fetchSuite(host->host, name, version));
}

// One that can be done without; some hosts offer it with functions missing.
template <typename Suite> const Suite *fetch_whole(const Host *host, const char *name, int version) {
    const Suite *suite = fetch<Suite>(host, name, version);
    void *functions[sizeof(Suite) / sizeof(void *)];
    if (suite != nullptr) std::memcpy(functions, suite, sizeof functions);
    bool is_whole = suite != nullptr && std::find(std::begin(functions), std::end(functions), nullptr) == std::end(functions);
    return is_whole ? suite : nullptr;
}

} // namespace

const Suites &suites() { return fetched; }

bool fetch_suites(const Host *host) {
    if (host == nullptr || host->fetchSuite == nullptr) return false;
    fetched.properties = fetch<PropertySuiteV1>(host, "OfxPropertySuite", 1);
    fetched.effects = fetch<ImageEffectSuiteV1>(host, "OfxImageEffectSuite", 1);
    fetched.parameters = fetch<ParameterSuiteV1>(host, "OfxParameterSuite", 1);
    fetched.message = fetch_whole<MessageSuiteV1>(host, "OfxMessageSuite", 1);
    fetched.persistent_message = fetch_whole<MessageSuiteV2>(host, "OfxMessageSuite", 2);
    fetched.progress = fetch_whole<ProgressSuiteV1>(host, "OfxProgressSuite", 1);
    fetched.named_progress = fetch_whole<ProgressSuiteV2>(host, "OfxProgressSuite", 2);
    return fetched.properties != nullptr && fetched.effects != nullptr && fetched.parameters != nullptr;
}

void Properties::set(const char *name, const char *value, int index) const {
    if (set_ != nullptr) fetched.properties->setString(set_, name, index, value);
}

void Properties::set(const char *name, double value, int index) const {
    if (set_ != nullptr) fetched.properties->setDouble(set_, name, index, value);
}

void Properties::set(const char *name, int value, int index) const {
    if (set_ != nullptr) fetched.properties->setInt(set_, name, index, value);
}

void Properties::set(const char *name, void *value) const {
    if (set_ != nullptr) fetched.properties->setPointer(set_, name, 0, value);
}

std::optional<std::string> Properties::text(const char *name) const {
    char *value = nullptr;
    if (set_ == nullptr || fetched.properties->getString(set_, name, 0, &value) != kOk || value == nullptr)
        return std::nullopt;
    return value;
}

std::optional<double> Properties::real(const char *name, int index) const {
    double value = 0;
    if (set_ == nullptr || fetched.properties->getDouble(set_, name, index, &value) != kOk) return std::nullopt;
    return value;
}

std::optional<int> Properties::integer(const char *name, int index) const {
    int value = 0;
    if (set_ == nullptr || fetched.properties->getInt(set_, name, index, &value) != kOk) return std::nullopt;
    return value;
}

void *Properties::pointer(const char *name) const {
    void *value = nullptr;
    if (set_ == nullptr || fetched.properties->getPointer(set_, name, 0, &value) != kOk) return nullptr;
    return value;
}

std::optional<RectI> Properties::rectangle(const char *name) const {
    RectI value{};
    if (set_ == nullptr || fetched.properties->getIntN(set_, name, 4, &value.x1) != kOk) return std::nullopt;
    return value;
}

Parameters::Parameters(Effect effect) { fetched.effects->getParamSet(effect, &set_); }

Param Parameters::handle(const char *name) const {
    Param param = nullptr;
    if (set_ == nullptr || fetched.parameters->getHandle(set_, name, &param, nullptr) != kOk) return nullptr;
    return param;
}

std::string Parameters::text(const char *name) const {
    char *value = nullptr;
    Param param = handle(name);
    if (param == nullptr || fetched.parameters->getValue(param, &value) != kOk || value == nullptr) return "";
    return value;
}

double Parameters::real(const char *name) const {
    double value = 0;
    Param param = handle(name);
    if (param != nullptr) fetched.parameters->getValue(param, &value);
    return value;
}

int Parameters::integer(const char *name) const {
    int value = 0;
    Param param = handle(name);
    if (param != nullptr) fetched.parameters->getValue(param, &value);
    return value;
}

void Parameters::set_text(const char *name, const std::string &value) const {
    Param param = handle(name);
    if (param != nullptr && text(name) != value) fetched.parameters->setValue(param, value.c_str());
}

Properties properties_of(Effect effect) {
    PropertySet set = nullptr;
    fetched.effects->getPropertySet(effect, &set);
    return Properties(set);
}

Properties properties_of(ImageClip clip) {
    PropertySet set = nullptr;
    fetched.effects->clipGetPropertySet(clip, &set);
    return Properties(set);
}

} // namespace vs3r::ofx
