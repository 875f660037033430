// The runner: times ncnn models on a phone or board as bblab's own worker does, with nothing installed there.
//
// What it reads and says is documented in bblab/latency/wire.py (the request and every line of a measurement) and in
// bblab/latency/runner/__init__.py (the command line, --about, --compute). One static program, no dependency but ncnn.

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu.h"
#include "datareader.h"
#include "layer.h"
#include "net.h"

namespace {

constexpr int kWire = 2;
constexpr int kProtocol = 2;
constexpr size_t kMaxRequestBytes = 64u << 20;
constexpr double kMaxElements = 1e8;     // of an input: 400 MB
constexpr unsigned kDefaultLimitS = 600;  // the longest load or call before the runner ends itself

#if defined(__aarch64__)
constexpr const char* kArch = "aarch64";
#elif defined(__x86_64__)
constexpr const char* kArch = "x86_64";
#else
constexpr const char* kArch = "other";
#endif

// A mistake to be told in one line; `code` 2 is a wrong command line, 1 anything else.
struct Stop : std::runtime_error {
    explicit Stop(const std::string& words, int code = 1) : std::runtime_error(words), code(code) {}
    int code;
};

// Clocks ----------------------------------------------------------------------------------------------------------

double now(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double wall() { return now(CLOCK_MONOTONIC); }
double cpu() { return now(CLOCK_PROCESS_CPUTIME_ID); }

void sleep_until(double due) {
    const double whole = floor(due);
    const timespec t = {static_cast<time_t>(whole), static_cast<long>((due - whole) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) == EINTR) {
    }
}

// Xorshift (Marsaglia 2003): each step waits for the one before, so its time follows the clock and nothing else.
// Never change it: times of the same kernel on the same device are compared over months.
constexpr int kSpeedometerSteps = 2000000;  // 3.3 ms on a 3 GHz server core
constexpr const char* kSpeedometer = "xorshift64-2000000";
volatile uint64_t speedometer_sink;

__attribute__((noinline)) void speedometer() {
    uint64_t x = 88172645463325252ull;
    for (int i = 0; i < kSpeedometerSteps; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    speedometer_sink = x;
}

struct Timed {
    double wall_s, cpu_s;
    long preempted;  // involuntary context switches meanwhile
};

long switches() {
    rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

// Wall and CPU seconds of one call. The wall clock is read outside the CPU clock, so CPU <= wall.
template <typename Work>
Timed timed(Work work) {
    const long before = switches();
    const double wall_start = wall(), cpu_start = cpu();
    work();
    const double cpu_s = cpu() - cpu_start, wall_s = wall() - wall_start;
    return {wall_s, std::max(0.0, cpu_s), switches() - before};
}

// What is said ----------------------------------------------------------------------------------------------------

int out_fd = 1;
unsigned limit_s = kDefaultLimitS;

void write_all(const char* bytes, size_t count) {
    while (count > 0) {
        const ssize_t done = write(out_fd, bytes, count);
        if (done < 0) {
            if (errno == EINTR) continue;
            _exit(4);  // nobody listens any more
        }
        bytes += done;
        count -= static_cast<size_t>(done);
    }
}

std::string quoted(const std::string& text) {
    std::string made = "\"";
    for (const char c : text) {
        const unsigned char u = static_cast<unsigned char>(c);
        if (u == '"' || u == '\\') {
            made += '\\';
            made += c;
        } else if (u < 0x20 || u == 0x7f) {
            char escape[8];
            snprintf(escape, sizeof escape, "\\u%04x", u);
            made += escape;
        } else {
            made += c;
        }
    }
    return made + "\"";
}

std::string number(double value) {
    char text[40];
    snprintf(text, sizeof text, "%.9f", value);
    return text;
}

// One message: a JSON object behind the tag, on a line of its own.
class Line {
public:
    explicit Line(const char* kind) : text_(std::string("BBLAB {\"kind\": \"") + kind + "\"") {}
    Line& raw(const char* name, const std::string& json) {
        text_ += std::string(", \"") + name + "\": " + json;
        return *this;
    }
    Line& add(const char* name, const std::string& value) { return raw(name, quoted(value)); }
    Line& add(const char* name, const char* value) { return raw(name, quoted(value)); }
    Line& add(const char* name, long value) { return raw(name, std::to_string(value)); }
    Line& add(const char* name, double value) { return raw(name, number(value)); }
    Line& list(const char* name, const std::vector<int>& values) {
        std::string json = "[";
        for (size_t i = 0; i < values.size(); i++) json += (i ? ", " : "") + std::to_string(values[i]);
        return raw(name, json + "]");
    }
    std::string end() const { return text_ + "}\n"; }

private:
    std::string text_;
};

// Whoever hears nothing for `limit_s` need not wait for us for ever, nor need the phone: SIGALRM ends the process.
void alive() { alarm(limit_s); }

void say(const std::string& lines) {
    alive();
    write_all(lines.data(), lines.size());
}

void on_signal(int number) {
    const char* words = "the runner was ended by a signal";
    switch (number) {
        case SIGALRM: words = "one load or call took longer than --limit, and the runner ended itself"; break;
        case SIGILL: words = "SIGILL: this CPU does not know an instruction of the runner"; break;
        case SIGSEGV: words = "SIGSEGV: the runner touched memory that is not its own"; break;
        case SIGBUS: words = "SIGBUS: the runner touched memory that is not there"; break;
        case SIGFPE: words = "SIGFPE: the runner divided by zero"; break;
        case SIGABRT: words = "SIGABRT: a library gave up"; break;
        default: break;
    }
    // Only what is allowed in a signal handler. The line begins anew: a message may have been half written.
    char line[200];
    size_t length = 0;
    for (const char* part : {"\nBBLAB {\"kind\": \"error\", \"message\": \"", words, "\"}\n"})
        for (; *part; part++) line[length++] = *part;
    if (write(out_fd, line, length) < 0) {
    }
    if (number == SIGALRM) _exit(3);
    signal(number, SIG_DFL);
    raise(number);
}

// What is read: JSON ----------------------------------------------------------------------------------------------

struct Json {
    enum Type { kNull, kBool, kNumber, kString, kArray, kObject } type = kNull;
    double num = 0;
    std::string str;
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> fields;

    const Json* find(const char* name) const {
        for (const auto& field : fields)
            if (field.first == name) return &field.second;
        return nullptr;
    }
};

class Parser {
public:
    explicit Parser(const std::string& text) : at_(text.c_str()), end_(at_ + text.size()) {}

    Json parse() {
        Json value = any(0);
        space();
        if (at_ != end_) wrong("something follows the object");
        return value;
    }

private:
    [[noreturn]] static void wrong(const char* why) { throw Stop(std::string("the request is not JSON: ") + why); }

    void space() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) at_++;
    }

    bool take(char c) {
        space();
        if (at_ == end_ || *at_ != c) return false;
        at_++;
        return true;
    }

    bool word(const char* text) {
        const size_t length = strlen(text);
        if (static_cast<size_t>(end_ - at_) < length || strncmp(at_, text, length) != 0) return false;
        at_ += length;
        return true;
    }

    Json any(int depth) {
        if (depth > 16) wrong("it is nested too deeply");
        Json value;
        space();
        if (at_ == end_) wrong("it is cut off");
        if (take('{')) {
            value.type = Json::kObject;
            if (take('}')) return value;
            do {
                space();
                if (at_ == end_ || *at_ != '"') wrong("a name was expected");
                std::string name = text();
                if (!take(':')) wrong("':' was expected");
                value.fields.emplace_back(std::move(name), any(depth + 1));
            } while (take(','));
            if (!take('}')) wrong("'}' was expected");
        } else if (take('[')) {
            value.type = Json::kArray;
            if (take(']')) return value;
            do value.items.push_back(any(depth + 1));
            while (take(','));
            if (!take(']')) wrong("']' was expected");
        } else if (*at_ == '"') {
            value.type = Json::kString;
            value.str = text();
        } else if (word("true")) {
            value.type = Json::kBool;
            value.num = 1;
        } else if (word("false")) {
            value.type = Json::kBool;
        } else if (!word("null")) {
            char* stopped = nullptr;
            if (!strchr("-0123456789", *at_)) wrong("a value was expected");
            value.type = Json::kNumber;
            value.num = strtod(at_, &stopped);
            if (stopped == at_ || stopped > end_ || !isfinite(value.num)) wrong("a number cannot be read");
            at_ = stopped;
        }
        return value;
    }

    unsigned hex4() {
        unsigned value = 0;
        for (int i = 0; i < 4; i++, at_++) {
            if (at_ == end_) wrong("it is cut off");
            const char c = *at_;
            unsigned digit;
            if (c >= '0' && c <= '9') digit = static_cast<unsigned>(c - '0');
            else if (c >= 'a' && c <= 'f') digit = static_cast<unsigned>(c - 'a') + 10;
            else if (c >= 'A' && c <= 'F') digit = static_cast<unsigned>(c - 'A') + 10;
            else wrong("an escape cannot be read");
            value = value * 16 + digit;
        }
        return value;
    }

    std::string text() {
        std::string made;
        at_++;
        while (true) {
            if (at_ == end_) wrong("a text is cut off");
            const char c = *at_++;
            if (c == '"') return made;
            if (c != '\\') {
                made += c;
                continue;
            }
            if (at_ == end_) wrong("a text is cut off");
            const char escape = *at_++;
            const char* plain = strchr("\"\"\\\\//b\bf\fn\nr\rt\t", escape);
            if (escape == 'u') {
                unsigned point = hex4();
                if (point >= 0xD800 && point < 0xDC00 && word("\\u")) {
                    const unsigned low = hex4();
                    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
                }
                utf8(made, point);
            } else if (plain && escape) {
                made += plain[1];
            } else {
                wrong("an escape cannot be read");
            }
        }
    }

    static void utf8(std::string& made, unsigned point) {
        if (point < 0x80) {
            made += static_cast<char>(point);
        } else if (point < 0x800) {
            made += static_cast<char>(0xC0 | (point >> 6));
            made += static_cast<char>(0x80 | (point & 0x3F));
        } else if (point < 0x10000) {
            made += static_cast<char>(0xE0 | (point >> 12));
            made += static_cast<char>(0x80 | ((point >> 6) & 0x3F));
            made += static_cast<char>(0x80 | (point & 0x3F));
        } else {
            made += static_cast<char>(0xF0 | ((point >> 18) & 0x07));
            made += static_cast<char>(0x80 | ((point >> 12) & 0x3F));
            made += static_cast<char>(0x80 | ((point >> 6) & 0x3F));
            made += static_cast<char>(0x80 | (point & 0x3F));
        }
    }

    const char* at_;
    const char* end_;
};

// The request -----------------------------------------------------------------------------------------------------

struct ModelFile {
    std::string path;
    std::vector<int> shape;  // without the batch
};

struct Request {
    std::string runtime;
    int threads = 1, warmups = 0;
    uint64_t seed = 0;
    std::vector<ModelFile> models;
    std::vector<std::vector<int>> orders;
    bool has_layers = false;  // the probe "layers"
    int warm_calls = 3, paced_calls = 0;
    double fill_s = 0.006, pace_s = 0, slice_s = 0;
    std::vector<int> cpus;
};

const Json& field(const Json& object, const char* name, Json::Type type) {
    const Json* found = object.find(name);
    if (!found) throw Stop(std::string("the request has no \"") + name + "\"");
    if (found->type != type) throw Stop(std::string("\"") + name + "\" in the request is of another type");
    return *found;
}

long whole(const Json& value, const char* name, double least, double most) {
    if (value.type != Json::kNumber || value.num != floor(value.num) || value.num < least || value.num > most)
        throw Stop(std::string("\"") + name + "\" in the request is not a whole number from " +
                   std::to_string(static_cast<long>(least)) + " to " + std::to_string(static_cast<long>(most)));
    return static_cast<long>(value.num);
}

double seconds(const Json& object, const char* name) {
    const double value = field(object, name, Json::kNumber).num;
    if (value < 0 || value > 3600) throw Stop(std::string("\"") + name + "\" is not between 0 and 3600 s");
    return value;
}

std::vector<int> checked_shape(std::vector<int> batched) {
    double elements = 1;
    for (const int size : batched) elements *= size;
    if (batched.size() < 2 || batched.size() > 4 || batched[0] != 1 || elements > kMaxElements)
        throw Stop("an input is 1, C, H, W with at most 1e8 numbers: ncnn knows no batch");
    batched.erase(batched.begin());
    return batched;
}

Request parse_request(const std::string& text) {
    const Json json = Parser(text).parse();
    if (json.type != Json::kObject) throw Stop("the request is not a JSON object");
    const long version = whole(field(json, "wire", Json::kNumber), "wire", 0, 1e9);
    if (version != kWire)
        throw Stop("the request is of version " + std::to_string(version) + ", this runner speaks version " +
                   std::to_string(kWire) + ": build it again");
    Request request;
    request.runtime = field(json, "runtime", Json::kString).str;
    request.threads = static_cast<int>(whole(field(json, "threads", Json::kNumber), "threads", 1, 1024));
    request.warmups = static_cast<int>(whole(field(json, "warmups", Json::kNumber), "warmups", 0, 1e6));
    request.seed = static_cast<uint64_t>(whole(field(json, "seed", Json::kNumber), "seed", 0, 9e15));
    for (const Json& item : field(json, "models", Json::kArray).items) {
        if (item.type != Json::kObject) throw Stop("a model of the request is not an object");
        ModelFile model;
        model.path = field(item, "path", Json::kString).str;
        std::vector<int> batched;
        for (const Json& size : field(item, "input", Json::kArray).items)
            batched.push_back(static_cast<int>(whole(size, "input", 1, 1e6)));
        model.shape = checked_shape(batched);
        request.models.push_back(model);
    }
    const size_t count = request.models.size();
    for (const Json& item : field(json, "orders", Json::kArray).items) {
        std::vector<int> order;
        std::vector<bool> seen(count, false);
        for (const Json& place : item.items) {
            const int at = static_cast<int>(whole(place, "orders", 0, static_cast<double>(count) - 1));
            if (seen[static_cast<size_t>(at)]) throw Stop("a round must run every model once");
            seen[static_cast<size_t>(at)] = true;
            order.push_back(at);
        }
        if (order.size() != count) throw Stop("a round must run every model once");
        request.orders.push_back(order);
    }
    const std::string probe = field(json, "probe", Json::kString).str;
    if (probe != "rounds" && probe != "layers")
        throw Stop("this runner does not know the probe \"" + probe + "\"; it has rounds, layers");
    request.has_layers = probe == "layers";
    request.warm_calls = static_cast<int>(whole(field(json, "warm_calls", Json::kNumber), "warm_calls", 0, 1e6));
    request.paced_calls = static_cast<int>(whole(field(json, "paced_calls", Json::kNumber), "paced_calls", 0, 1e6));
    request.fill_s = seconds(json, "fill_s");
    request.pace_s = seconds(json, "pace_s");
    request.slice_s = seconds(json, "slice_s");
    for (const Json& core : field(json, "cpus", Json::kArray).items)
        request.cpus.push_back(static_cast<int>(whole(core, "cpus", 0, CPU_SETSIZE - 1)));
    return request;
}

std::string read_line() {
    std::string line;
    char chunk[65536];
    while (line.find('\n') == std::string::npos) {
        const ssize_t got = read(0, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw Stop(std::string("standard input cannot be read: ") + strerror(errno));
        if (got == 0) break;
        line.append(chunk, static_cast<size_t>(got));
        if (line.size() > kMaxRequestBytes) throw Stop("the request is over 64 MB");
    }
    line = line.substr(0, line.find('\n'));
    if (line.find_first_not_of(" \t\r") == std::string::npos) throw Stop("no request came on standard input", 2);
    return line;
}

// Files -----------------------------------------------------------------------------------------------------------

std::vector<unsigned char> read_file(const std::string& path) {
    FILE* file = fopen(path.c_str(), "rb");
    if (!file) throw Stop(path + " cannot be read: " + strerror(errno));
    std::vector<unsigned char> bytes;
    struct stat about;
    if (fstat(fileno(file), &about) == 0 && S_ISREG(about.st_mode)) bytes.reserve(static_cast<size_t>(about.st_size));
    unsigned char chunk[65536];
    size_t got;
    while ((got = fread(chunk, 1, sizeof chunk, file)) > 0) bytes.insert(bytes.end(), chunk, chunk + got);
    const bool failed = ferror(file) != 0;
    fclose(file);
    if (failed) throw Stop(path + " cannot be read to its end");
    return bytes;
}

uint32_t crc32(const unsigned char* bytes, size_t count) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
            table[i] = c;
        }
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < count; i++) crc = table[(crc ^ bytes[i]) & 0xFF] ^ (crc >> 8);
    return crc ^ 0xFFFFFFFFu;
}

// A zip whose members are stored as they are: what bblab packs ncnn's two files into.
class Zip {
public:
    explicit Zip(const std::string& path) : path_(path), bytes_(read_file(path)) {
        const size_t least = 22;
        size_t end = std::string::npos;
        for (size_t back = least; back <= bytes_.size() && back <= least + 65535; back++)
            if (u32(bytes_.size() - back) == 0x06054b50u) {
                end = bytes_.size() - back;
                break;
            }
        if (end == std::string::npos) wrong("it is cut off, or no model of bblab's");
        count_ = u16(end + 10);
        directory_ = u32(end + 16);
    }

    // Where the member begins, and how long it is.
    std::pair<const unsigned char*, size_t> member(const std::string& name) const {
        size_t at = directory_;
        for (unsigned i = 0; i < count_; i++) {
            if (u32(at) != 0x02014b50u) wrong("its directory is broken");
            const size_t name_length = u16(at + 28);
            need(at + 46, name_length);
            if (std::string(reinterpret_cast<const char*>(&bytes_[at + 46]), name_length) == name) {
                const uint32_t method = u16(at + 10), crc = u32(at + 16), size = u32(at + 24), local = u32(at + 42);
                if (method != 0 || u32(at + 20) != size) wrong("its members are compressed; bblab stores them");
                if (u32(local) != 0x04034b50u) wrong("its directory is broken");
                const size_t start = static_cast<size_t>(local) + 30 + u16(local + 26) + u16(local + 28);
                need(start, size);
                if (crc32(bytes_.data() + start, size) != crc) wrong((name + " in it is damaged").c_str());
                return {bytes_.data() + start, size};
            }
            at += 46 + name_length + u16(at + 30) + u16(at + 32);
        }
        wrong(("there is no " + name + " in it").c_str());
    }

private:
    [[noreturn]] void wrong(const char* why) const { throw Stop("the model " + path_ + " cannot be read: " + why); }
    void need(size_t at, size_t count) const {
        if (at > bytes_.size() || bytes_.size() - at < count) wrong("it is cut off");
    }
    uint32_t u16(size_t at) const {
        need(at, 2);
        return static_cast<uint32_t>(bytes_[at] | (bytes_[at + 1] << 8));
    }
    uint32_t u32(size_t at) const { return u16(at) | (u16(at + 2) << 16); }

    std::string path_;
    std::vector<unsigned char> bytes_;
    unsigned count_ = 0;
    size_t directory_ = 0;
};

// Weights from memory, copied out: ncnn's own reader would leave them where they lie, at any alignment.
class Weights : public ncnn::DataReader {
public:
    Weights(const unsigned char* at, size_t left) : at_(at), left_(left) {}
    size_t read(void* buffer, size_t size) const override {
        const size_t count = std::min(size, left_);
        memcpy(buffer, at_, count);
        at_ += count;
        left_ -= count;
        return count;
    }

private:
    mutable const unsigned char* at_;
    mutable size_t left_;
};

// Times of layers -------------------------------------------------------------------------------------------------

struct LayerTime {
    std::string name, type;
    double wall_s;
    std::vector<int> output;  // C, H, W of its first output, where it has one input
};

bool layers_wanted = false;
std::vector<LayerTime> layer_times;

std::vector<int> shape_of(const ncnn::Mat& mat) {
    switch (mat.dims) {
        case 1: return {mat.w * mat.elempack};
        case 2: return {mat.h * mat.elempack, mat.w};
        case 3: return {mat.c * mat.elempack, mat.h, mat.w};
        case 4: return {mat.c * mat.elempack, mat.d, mat.h, mat.w};
        default: return {};
    }
}

// Models ----------------------------------------------------------------------------------------------------------

enum class Precision { kFloat32, kFloat16 };

// The precision that is computed with, after what the CPU knows.
std::string effective(Precision precision) {
    if (precision == Precision::kFloat32) return "float32";
#if defined(__aarch64__)
    return ncnn::cpu_support_arm_asimdhp() ? "float16" : "float16 storage";
#elif defined(__x86_64__)
    // Convolutions stay as they are: mobileone_s0@s16 gave the very same outputs.
    if (ncnn::cpu_support_x86_f16c()) return "float32, linear weights float16";
#endif
    throw Stop("this CPU has no float16; measure it in float32");
}

void set_precision(ncnn::Option& option, Precision precision) {
    const bool half = precision == Precision::kFloat16;
    option.use_fp16_packed = half;
    option.use_fp16_storage = half;
    option.use_fp16_arithmetic = half;
    option.use_bf16_storage = false;
}

class Model {
public:
    Model(const std::string& path, const std::vector<int>& shape, int threads, Precision precision) : path_(path) {
        net_.opt.num_threads = threads;
        set_precision(net_.opt, precision);
        const Zip zip(path);
        const auto param = zip.member("model.ncnn.param");
        const auto weights = zip.member("model.ncnn.bin");
        const std::string text(reinterpret_cast<const char*>(param.first), param.second);
        if (net_.load_param_mem(text.c_str()) != 0)
            throw Stop("ncnn cannot read the layers of " + path + ": it holds an operation that this ncnn has not");
        if (net_.load_model(Weights(weights.first, weights.second)) != 0)
            throw Stop("ncnn cannot read the weights of " + path);
        if (net_.input_names().size() != 1) throw Stop("the model " + path + " has not one input");
        input_ = net_.input_names()[0];
        for (const char* name : net_.output_names()) outputs_.push_back(name);
        // out0, out1, ... out10
        std::sort(outputs_.begin(), outputs_.end(), [](const std::string& a, const std::string& b) {
            return a.size() != b.size() ? a.size() < b.size() : a < b;
        });
        if (outputs_.empty()) throw Stop("the model " + path + " has no output");
        if (shape.size() == 1) x_.create(shape[0]);
        if (shape.size() == 2) x_.create(shape[1], shape[0]);
        if (shape.size() == 3) x_.create(shape[2], shape[1], shape[0]);
        if (x_.empty()) throw Stop("no memory for the input of " + path);
    }

    // The next number of the input; channels are padded in memory.
    template <typename Next>
    void fill(Next next) {
        const int rows = x_.dims == 3 ? x_.c : 1;
        const size_t count = x_.dims == 1 ? static_cast<size_t>(x_.w) : static_cast<size_t>(x_.w) * x_.h;
        for (int c = 0; c < rows; c++) {
            float* channel = x_.dims == 3 ? static_cast<float*>(x_.channel(c)) : static_cast<float*>(x_);
            for (size_t i = 0; i < count; i++) channel[i] = next();
        }
    }

    // One inference: every output, in the order of the module's.
    void run() { compute(nullptr); }

    std::vector<ncnn::Mat> outputs() {
        std::vector<ncnn::Mat> found(outputs_.size());
        compute(&found);
        return found;
    }

    const std::vector<std::string>& output_names() const { return outputs_; }

private:
    void compute(std::vector<ncnn::Mat>* found) {
        ncnn::Extractor extractor = net_.create_extractor();
        extractor.input(input_.c_str(), x_);
        for (size_t i = 0; i < outputs_.size(); i++) {
            ncnn::Mat mat;
            const int code = extractor.extract(outputs_[i].c_str(), mat);
            if (code != 0 || mat.empty())
                throw Stop("ncnn could not compute " + outputs_[i] + " of " + path_ + " (code " + std::to_string(code) +
                           "): another input size, or no memory");
            if (found) (*found)[i] = mat;
        }
    }

    ncnn::Net net_;
    ncnn::Mat x_;
    std::string path_, input_;
    std::vector<std::string> outputs_;
};

// Standard normal numbers (Box and Muller 1958); another stream than numpy's of the same seed.
class Normal {
public:
    explicit Normal(uint64_t seed) : engine_(seed) {}
    float operator()() {
        const double u = (static_cast<double>(engine_() >> 11) + 1) * 0x1p-53, v = engine_() * 0x1p-64;
        return static_cast<float>(sqrt(-2 * log(u)) * cos(2 * M_PI * v));
    }

private:
    std::mt19937_64 engine_;
};

// Cores -----------------------------------------------------------------------------------------------------------

std::vector<int> cores() {
    cpu_set_t set;
    std::vector<int> found;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set)) found.push_back(i);
    return found;
}

std::string joined(const std::vector<int>& values) {
    std::string text;
    for (const int value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
    return text.empty() ? "none" : text;
}

// "0,4-7"
std::vector<int> parse_cores(const std::string& text) {
    std::vector<int> found;
    const char* at = text.c_str();
    while (true) {
        char* end;
        if (*at < '0' || *at > '9') break;
        const long first = strtol(at, &end, 10);
        long last = first;
        if (*end == '-' && end[1] >= '0' && end[1] <= '9') last = strtol(end + 1, &end, 10);
        if (first > last || last >= CPU_SETSIZE) break;
        for (long core = first; core <= last; core++) found.push_back(static_cast<int>(core));
        if (*end == '\0') {
            std::sort(found.begin(), found.end());
            found.erase(std::unique(found.begin(), found.end()), found.end());
            return found;
        }
        if (*end != ',') break;
        at = end + 1;
    }
    throw Stop("--cpus " + text + ": give cores such as 0,4-7", 2);
}

// Cpusets take cores away from what was asked and say nothing of it: what came is compared with what was asked.
void pin(const std::vector<int>& asked) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int core : asked) CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        throw Stop("the cores " + joined(asked) + " cannot be had: " + strerror(errno));
    if (cores() != asked) throw Stop("the cores " + joined(asked) + " were asked, the system gives " + joined(cores()));
}

// A worker of one thread stays on the core on which the scheduler has put it; -1 where the system does not allow that.
int hold_one_core() {
    const int core = sched_getcpu();
    if (core < 0) return -1;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) return -1;
    return cores() == std::vector<int>{core} ? core : -1;
}

// struct sched_attr, first version: from Linux 6.12 on `runtime` is the time slice of an ordinary task.
struct SchedAttr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

// Asks for a long time slice; the one that was granted, 0 where none was: older kernels take the wish and forget it.
double ask_slice(double slice_s) {
#if defined(SYS_sched_setattr) && defined(SYS_sched_getattr)
    SchedAttr attributes = {};
    attributes.size = sizeof attributes;
    if (slice_s <= 0 || syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return 0;
    if (attributes.policy != SCHED_OTHER) return 0;
    attributes.runtime = static_cast<uint64_t>(slice_s * 1e9);
    if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) return 0;
    attributes.runtime = 0;
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return 0;
    return 1e-9 * static_cast<double>(attributes.runtime);
#else
    (void)slice_s;
    return 0;
#endif
}

// What it does ----------------------------------------------------------------------------------------------------

std::string speed_line(int round) {
    const Timed t = timed(speedometer);
    return Line("speed").add("round", static_cast<long>(round)).add("wall_s", t.wall_s).add("cpu_s", t.cpu_s).end();
}

std::string call_line(int round, int model, const char* state, const Timed& t) {
    return Line("call")
        .add("round", static_cast<long>(round))
        .add("model", static_cast<long>(model))
        .add("state", state)
        .add("wall_s", t.wall_s)
        .add("cpu_s", t.cpu_s)
        .add("preempted", t.preempted)
        .end();
}

std::string layer_lines(int round, int model, int call) {
    std::string lines;
    for (size_t place = 0; place < layer_times.size(); place++) {
        const LayerTime& layer = layer_times[place];
        lines += Line("layer")
                     .add("round", static_cast<long>(round))
                     .add("model", static_cast<long>(model))
                     .add("call", static_cast<long>(call))
                     .add("place", static_cast<long>(place))
                     .add("name", layer.name)
                     .add("type", layer.type)
                     .list("output", layer.output)
                     .add("wall_s", layer.wall_s)
                     .end();
    }
    return lines;
}

// Run a model until so much time has passed since then: its caches are its own again.
void fill(Model& model, double fill_s, double since) {
    while (wall() - since < fill_s) {
        alive();
        model.run();
    }
}

// One net's turn in a round: cold, then run until the caches are its own, then warm, then at a camera's pace.
std::string visit(Model& model, int round, int at, const Request& request) {
    const auto run = [&] { model.run(); };
    alive();
    const double began = wall();
    std::string spoken = call_line(round, at, "cold", timed(run));
    fill(model, request.fill_s, began);
    for (int i = 0; i < request.warm_calls; i++) {
        alive();
        spoken += call_line(round, at, "warm", timed(run));
    }
    double due = wall() + request.pace_s;
    for (int i = 0; i < request.paced_calls; i++) {
        alarm(limit_s + static_cast<unsigned>(request.pace_s) + 1);
        if (wall() < due) sleep_until(due);
        due = std::max(due, wall() - request.pace_s) + request.pace_s;
        alive();
        spoken += call_line(round, at, "paced", timed(run));
    }
    if (!request.has_layers) return spoken;
    fill(model, request.fill_s, wall());
    for (int i = 0; i < request.warm_calls; i++) {
        alive();
        layer_times.clear();
        layers_wanted = true;
        const Timed t = timed(run);
        layers_wanted = false;
        spoken += call_line(round, at, "profiled", t) + layer_lines(round, at, i);
    }
    return spoken;
}

void measure(Precision precision) {
    const Request request = parse_request(read_line());
    if (!request.cpus.empty()) pin(request.cpus);
    say(Line("hello")
            .add("wire", static_cast<long>(kWire))
            .add("protocol", static_cast<long>(kProtocol))
            .add("runtime", request.runtime)
            .add("runtime_version", BBLAB_NCNN_VERSION)
            .add("precision", effective(precision))
            .add("speedometer", kSpeedometer)
            .add("arch", kArch)
            .list("cpus", cores())
            .end());
    Normal normal(request.seed);
    std::vector<Model*> models;  // never freed: the process ends
    for (const ModelFile& file : request.models) {
        alive();
        models.push_back(new Model(file.path, file.shape, request.threads, precision));
        models.back()->fill(normal);
    }
    for (Model* model : models)
        for (int i = 0; i < request.warmups; i++) {
            alive();
            model->run();
        }
    for (int i = 0; i < std::min(request.warmups, 3); i++) speedometer();
    const int core = request.threads == 1 ? hold_one_core() : -1;
    const double slice_s = ask_slice(request.slice_s);
    say(Line("ready")
            .add("models", static_cast<long>(models.size()))
            .raw("cpu", core < 0 ? "null" : std::to_string(core))
            .raw("slice_s", slice_s > 0 ? number(slice_s) : "null")
            .end());
    layer_times.reserve(4096);
    for (size_t place = 0; place < request.orders.size(); place++) {
        const int round = static_cast<int>(place);
        std::string spoken = speed_line(round);
        for (const int at : request.orders[place]) spoken += visit(*models[static_cast<size_t>(at)], round, at, request);
        say(spoken);
    }
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    say(speed_line(static_cast<int>(request.orders.size())) +
        Line("end")
            .add("rounds", static_cast<long>(request.orders.size()))
            .add("peak_memory_bytes", static_cast<long>(usage.ru_maxrss) * 1024)
            .end());
}

void about() {
    std::string half = "none";
    try {
        half = effective(Precision::kFloat16);
    } catch (const Stop&) {
    }
    say(Line("about")
            .add("program", "bblab-runner")
            .add("wire", static_cast<long>(kWire))
            .add("protocol", static_cast<long>(kProtocol))
            .add("ncnn", BBLAB_NCNN_VERSION)
            .add("arch", kArch)
            .add("compiler", __VERSION__)
            .add("speedometer", kSpeedometer)
            .add("float16", half)
            .list("cpus", cores())
            .end());
}

void run_speedometer(long count) {
    for (long i = 0; i < count; i++) say(speed_line(static_cast<int>(i)));
}

void compute(const std::vector<std::string>& words, Precision precision, int threads) {
    const std::string &model_path = words[0], &in = words[2], &out = words[3];
    std::vector<int> batched;
    for (const char* at = words[1].c_str(); *at;) {
        char* end;
        const long size = strtol(at, &end, 10);
        if (end == at || size < 1 || size > 1000000 || (*end && *end != ',')) throw Stop("a shape is 1,3,255,255", 2);
        batched.push_back(static_cast<int>(size));
        at = *end ? end + 1 : end;
    }
    Model model(model_path, checked_shape(batched), threads, precision);
    const std::vector<unsigned char> bytes = read_file(in);
    size_t count = sizeof(float);
    for (const int size : batched) count *= static_cast<size_t>(size);
    if (bytes.size() != count)
        throw Stop(in + " has " + std::to_string(bytes.size()) + " bytes, " + words[1] + " in float32 has " +
                   std::to_string(count));
    size_t at = 0;
    model.fill([&] {
        float value;
        memcpy(&value, bytes.data() + at, sizeof value);
        at += sizeof value;
        return value;
    });
    const std::vector<ncnn::Mat> outputs = model.outputs();
    FILE* file = fopen(out.c_str(), "wb");
    if (!file) throw Stop(out + " cannot be written: " + strerror(errno));
    std::string lines;
    bool good = true;
    for (size_t i = 0; i < outputs.size(); i++) {
        const ncnn::Mat& mat = outputs[i];
        // Row by row of channels: Mat::total() and memory order include padding between channels.
        const int channels = mat.dims >= 3 ? mat.c : 1;
        const size_t each = static_cast<size_t>(mat.w) * mat.h * mat.d;
        for (int c = 0; c < channels; c++) {
            const float* values = mat.dims >= 3 ? static_cast<const float*>(mat.channel(c)) : static_cast<const float*>(mat);
            good = good && fwrite(values, sizeof(float), each, file) == each;
        }
        lines += Line("output")
                     .add("place", static_cast<long>(i))
                     .add("name", model.output_names()[i])
                     .list("shape", shape_of(mat))
                     .add("precision", effective(precision))
                     .end();
    }
    if (fclose(file) != 0 || !good) throw Stop(out + " cannot be written to its end");
    say(lines);
}

// The command line ------------------------------------------------------------------------------------------------

long count_of(const std::string& option, const std::string& text, long most) {
    char* end;
    const long value = strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || value < 1 || value > most)
        throw Stop(option + " " + text + ": give a whole number from 1 to " + std::to_string(most), 2);
    return value;
}

int run(int argc, char** argv) {
    std::vector<std::string> words(argv + 1, argv + argc);
    Precision precision = Precision::kFloat32;
    int threads = 1;
    size_t at = 0;
    const auto next = [&](const std::string& option) {
        if (at >= words.size()) throw Stop(option + " needs a value", 2);
        return words[at++];
    };
    std::string task = "measure";
    long speeds = 0;
    std::vector<std::string> files;
    while (at < words.size()) {
        const std::string option = words[at++];
        if (option == "--cpus") {
            pin(parse_cores(next(option)));
        } else if (option == "--limit") {
            limit_s = static_cast<unsigned>(count_of(option, next(option), 86400));
        } else if (option == "--threads") {
            threads = static_cast<int>(count_of(option, next(option), 1024));
        } else if (option == "--precision") {
            const std::string value = next(option);
            if (value != "float32" && value != "float16") throw Stop("--precision " + value + ": float32 or float16", 2);
            precision = value == "float16" ? Precision::kFloat16 : Precision::kFloat32;
        } else if (option == "--about") {
            task = "about";
        } else if (option == "--speedometer") {
            task = "speedometer";
            speeds = count_of(option, next(option), 100000);
        } else if (option == "--compute") {
            task = "compute";
            for (int i = 0; i < 4; i++) files.push_back(next(option));
        } else {
            throw Stop("no option " + option + ": --cpus LIST, --precision P, --limit S, --about, --speedometer N, "
                       "--compute MODEL SHAPE IN OUT", 2);
        }
    }
    alive();
    if (task == "about") about();
    else if (task == "speedometer") run_speedometer(speeds);
    else if (task == "compute") compute(files, precision, threads);
    else measure(precision);
    return 0;
}

}  // namespace

// In the place of ncnn's own, by the linker's --wrap (see CMakeLists.txt): ncnn calls them around every layer.
extern "C" {
double __wrap__ZN4ncnn16get_current_timeEv() { return layers_wanted ? 1e3 * wall() : 0; }

void __wrap__ZN4ncnn9benchmarkEPKNS_5LayerEdd(const ncnn::Layer* layer, double start_ms, double end_ms) {
    if (layers_wanted) layer_times.push_back({layer->name, layer->type, 1e-3 * (end_ms - start_ms), {}});
}

void __wrap__ZN4ncnn9benchmarkEPKNS_5LayerERKNS_3MatERS3_dd(
    const ncnn::Layer* layer, const ncnn::Mat&, ncnn::Mat& top, double start_ms, double end_ms) {
    if (layers_wanted) layer_times.push_back({layer->name, layer->type, 1e-3 * (end_ms - start_ms), shape_of(top)});
}
}

int main(int argc, char** argv) {
    // Our own copy of standard output; whatever a library prints there goes to standard error from now on.
    out_fd = dup(1);
    if (out_fd < 0 || dup2(2, 1) < 0) out_fd = 1;
    for (const int number : {SIGALRM, SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT}) signal(number, on_signal);
    int code = 1;
    try {
        code = run(argc, argv);
    } catch (const Stop& stop) {
        say(Line("error").add("message", stop.what()).end());
        code = stop.code;
    } catch (const std::bad_alloc&) {
        say(Line("error").add("message", "out of memory").end());
    } catch (const std::exception& error) {
        say(Line("error").add("message", error.what()).end());
    }
    // No destructors: freeing the models is no part of the work.
    fflush(stderr);
    _exit(code);
}
