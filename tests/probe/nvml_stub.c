/* A libnvidia-ml.so.1 that answers from a recorded machine, so that the probe's real path (pynvml, ctypes) runs without a card.
 *
 * NVML_STUB_MACHINE names a text file of "key value" lines; conftest.py writes it from tests/machines/NAME.json. A call answers
 * with the return code under "gpu.I.error.CALL" (or "error.CALL"), if there is one; a value that is missing is NOT_SUPPORTED.
 * -DOLD_DRIVER leaves out what a driver of 2019 lacked, -DANCIENT_DRIVER the very entry point.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned sm, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices; unsigned long long memory_mb; } attributes_t;

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

/* A handle is a number: 1000 x (GPU + 1) + slice + 1, without a slice 0. */
static int gpu_of(device_t device) { return (int)((size_t)device / 1000) - 1; }
static int slice_of(device_t device) { return (int)((size_t)device % 1000) - 1; }

static int look_up(const char *key, char *value, size_t size) {
    const char *path = getenv("NVML_STUB_MACHINE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        char *space = strchr(line, ' ');
        if (!space) continue;
        *space = 0;
        if (strcmp(line, key)) continue;
        space[1 + strcspn(space + 1, "\n")] = 0;
        snprintf(value, size, "%s", space + 1);
        found = 1;
    }
    if (file) fclose(file);
    return found;
}

static int number(const char *key, unsigned long long *value) {
    char text[512];
    if (!look_up(key, text, sizeof text)) return 0;
    *value = strtoull(text, NULL, 10);
    return 1;
}

static void key_of(device_t device, const char *name, char *key, size_t size) {
    if (slice_of(device) >= 0) snprintf(key, size, "gpu.%d.slice.%d.%s", gpu_of(device), slice_of(device), name);
    else snprintf(key, size, "gpu.%d.%s", gpu_of(device), name);
}

static int refused(device_t device, const char *call) {
    char key[128], name[64];
    unsigned long long code = 0;
    snprintf(name, sizeof name, "error.%s", call);
    if (device) key_of(device, name, key, sizeof key);
    else snprintf(key, sizeof key, "%s", name);
    number(key, &code);
    return (int)code;
}

static int device_text(device_t device, const char *name, char *value, unsigned size) {
    char key[128];
    int code = refused(device, name);
    if (code) return code;
    key_of(device, name, key, sizeof key);
    return look_up(key, value, size) ? SUCCESS : NOT_SUPPORTED;
}

static int device_number(device_t device, const char *name, unsigned *value) {
    char key[128];
    unsigned long long wide;
    int code = refused(device, name);
    if (code) return code;
    key_of(device, name, key, sizeof key);
    if (!number(key, &wide)) return NOT_SUPPORTED;
    *value = (unsigned)wide;
    return SUCCESS;
}

#ifndef ANCIENT_DRIVER
int nvmlInitWithFlags(unsigned flags) { (void)flags; return refused(NULL, "init"); }
#endif
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) { return look_up("driver", version, size) ? SUCCESS : NOT_SUPPORTED; }

int nvmlSystemGetCudaDriverVersion(int *version) {
    unsigned long long value;
    if (!number("cuda", &value)) return NOT_SUPPORTED;
    *version = (int)value;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned long long value = 0;
    int code = refused(NULL, "count");
    if (code) return code;
    number("count", &value);
    *count = (unsigned)value;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    *device = (device_t)(size_t)(1000 * (index + 1));
    return refused(*device, "handle");
}

int nvmlDeviceGetName(device_t device, char *name, unsigned size) { return device_text(device, "name", name, size); }
int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned size) { return device_text(device, "uuid", uuid, size); }

int nvmlDeviceGetDisplayActive(device_t device, int *mode) { return device_number(device, "display_active", (unsigned *)mode); }
int nvmlDeviceGetDisplayMode(device_t device, int *mode) { return device_number(device, "display_mode", (unsigned *)mode); }

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
    char key[128];
    int code = refused(device, "memory");
    if (code) return code;
    key_of(device, "total", key, sizeof key);
    if (!number(key, &memory->total)) return NOT_SUPPORTED;
    key_of(device, "free", key, sizeof key);
    if (!number(key, &memory->free)) return NOT_SUPPORTED;
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor) {
    unsigned first, second;
    int code = device_number(device, "major", &first);
    if (code) return code;
    code = device_number(device, "minor", &second);
    *major = (int)first;
    *minor = (int)second;
    return code;
}

static int processes(device_t device, const char *kind, unsigned *count, process_t *list) {
    char key[128], name[64];
    unsigned long long total = 0;
    unsigned room = *count;
    int code = refused(device, "processes");
    if (code) return code;
    snprintf(name, sizeof name, "%s.count", kind);
    key_of(device, name, key, sizeof key);
    number(key, &total);
    *count = (unsigned)total;
    if (!total) return SUCCESS;
    if (!list || room < total) return INSUFFICIENT_SIZE;
    for (unsigned index = 0; index < total; index++) {
        unsigned long long value = 0;
        memset(&list[index], 0, sizeof list[index]);
        snprintf(name, sizeof name, "%s.%u.pid", kind, index);
        key_of(device, name, key, sizeof key);
        number(key, &value);
        list[index].pid = value ? (unsigned)value : (unsigned)getpid(); /* 0 stands for the caller */
        snprintf(name, sizeof name, "%s.%u.bytes", kind, index);
        key_of(device, name, key, sizeof key);
        list[index].used = ~0ULL; /* NVML_VALUE_NOT_AVAILABLE */
        number(key, &list[index].used);
    }
    return SUCCESS;
}

#ifdef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v2(device_t device, unsigned *count, process_t *list) { return processes(device, "compute", count, list); }
#else
int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, process_t *list) { return processes(device, "compute", count, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t device, unsigned *count, process_t *list) { return processes(device, "graphics", count, list); }

int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    int code = device_number(device, "mig", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *count) { return device_number(device, "max_slices", count); }

int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *slice) {
    char key[128], text[512];
    snprintf(key, sizeof key, "gpu.%d.slice.%u.uuid", gpu_of(device), index);
    if (!look_up(key, text, sizeof text)) return NOT_FOUND; /* slots may be empty */
    *slice = (device_t)(size_t)((size_t)device + index + 1);
    return SUCCESS;
}

int nvmlDeviceGetAttributes_v2(device_t device, attributes_t *attributes) {
    unsigned slices, megabytes;
    int code = device_number(device, "slices_of_seven", &slices);
    if (code) return code;
    code = device_number(device, "memory_mb", &megabytes);
    if (code) return code;
    memset(attributes, 0, sizeof *attributes);
    attributes->gpu_slices = attributes->compute_slices = slices;
    attributes->memory_mb = megabytes;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(device_t device, unsigned link, unsigned *active) {
    unsigned links;
    int code = device_number(device, "nvlinks", &links);
    if (code) return code;
    if (link >= links) return INVALID_ARGUMENT;
    *active = 1;
    return SUCCESS;
}
#endif

int nvmlDeviceGetMaxPcieLinkGeneration(device_t device, unsigned *generation) { return device_number(device, "pcie_generation", generation); }
int nvmlDeviceGetCurrPcieLinkWidth(device_t device, unsigned *width) { return device_number(device, "pcie_width", width); }
