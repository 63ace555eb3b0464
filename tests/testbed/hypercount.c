/*
 * Counts the hypercalls of one process: LD_PRELOAD=hypercount.so HYPERCOUNT=FILE xl create …
 *
 * Everything that a toolstack asks of Xen goes through ioctls on /dev/xen/privcmd: hypercalls, and the mapping of a
 * guest's frames, which the kernel turns into hypercalls of its own. When the process that loaded this ends, FILE
 * gets "hypercalls N", "mappings N", "unpaused SECONDS" if it unpaused a domain (the machine's uptime when it first asked
 * for that) and then a line "KIND N" for each kind of either. Neither its children nor what it forks (xl leaves a process
 * behind for each guest) is counted.
 *
 * libxenctrl sends its memory operations inside a multicall; those count one by one, as they do in Xen.
 */
#define _GNU_SOURCE
#define __XEN_TOOLS__ 1

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/hvm/hvm_op.h>
#include <xen/memory.h>
#include <xen/sysctl.h>

/* Linux, include/uapi/xen/privcmd.h. */
struct hypercall {
    uint64_t op;
    uint64_t arg[5];
};
#define PRIVCMD_HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct hypercall))
#define IS_PRIVCMD(request, number) \
    (_IOC_TYPE(request) == 'P' && _IOC_NR(request) == (number) && _IOC_DIR(request) == _IOC_NONE)
enum { PRIVCMD_MMAP = 2, PRIVCMD_MMAPBATCH = 3, PRIVCMD_MMAPBATCH_V2 = 4, PRIVCMD_MMAP_RESOURCE = 7 };

struct name {
    unsigned int number;
    const char *text;
};

static const struct name hypercalls[] = {
    { __HYPERVISOR_memory_op, "memory" },     { __HYPERVISOR_xen_version, "xen_version" },
    { __HYPERVISOR_grant_table_op, "grant" }, { __HYPERVISOR_sched_op, "sched" },
    { __HYPERVISOR_xsm_op, "xsm" },           { __HYPERVISOR_event_channel_op, "evtchn" },
    { __HYPERVISOR_hvm_op, "hvm" },           { __HYPERVISOR_sysctl, "sysctl" },
    { __HYPERVISOR_domctl, "domctl" },        { __HYPERVISOR_mmuext_op, "mmuext" },
    { __HYPERVISOR_multicall, "multicall" },  { 0, NULL },
};
static const struct name memory[] = {
    { XENMEM_increase_reservation, "increase_reservation" },
    { XENMEM_decrease_reservation, "decrease_reservation" },
    { XENMEM_populate_physmap, "populate_physmap" },
    { XENMEM_add_to_physmap, "add_to_physmap" },
    { XENMEM_set_memory_map, "set_memory_map" },
    { XENMEM_claim_pages, "claim_pages" },
    { XENMEM_maximum_gpfn, "maximum_gpfn" },
    { 0, NULL },
};
static const struct name domctl[] = {
    { XEN_DOMCTL_createdomain, "createdomain" },
    { XEN_DOMCTL_destroydomain, "destroydomain" },
    { XEN_DOMCTL_pausedomain, "pausedomain" },
    { XEN_DOMCTL_unpausedomain, "unpausedomain" },
    { XEN_DOMCTL_getdomaininfo, "getdomaininfo" },
    { XEN_DOMCTL_setvcpuaffinity, "setvcpuaffinity" },
    { XEN_DOMCTL_max_mem, "max_mem" },
    { XEN_DOMCTL_max_vcpus, "max_vcpus" },
    { XEN_DOMCTL_scheduler_op, "scheduler_op" },
    { XEN_DOMCTL_gethvmcontext, "gethvmcontext" },
    { XEN_DOMCTL_gethvmcontext_partial, "gethvmcontext_partial" },
    { XEN_DOMCTL_sethvmcontext, "sethvmcontext" },
    { XEN_DOMCTL_setnodeaffinity, "setnodeaffinity" },
    { XEN_DOMCTL_settscinfo, "settscinfo" },
    { XEN_DOMCTL_set_cpu_policy, "set_cpu_policy" },
    { XEN_DOMCTL_get_cpu_policy, "get_cpu_policy" },
    { XEN_DOMCTL_set_paging_mempool_size, "set_paging_mempool_size" },
    { 0, NULL },
};
static const struct name sysctl[] = {
    { XEN_SYSCTL_physinfo, "physinfo" },
    { XEN_SYSCTL_getdomaininfolist, "getdomaininfolist" },
    { XEN_SYSCTL_cputopoinfo, "cputopoinfo" },
    { XEN_SYSCTL_numainfo, "numainfo" },
    { XEN_SYSCTL_cpupool_op, "cpupool_op" },
    { XEN_SYSCTL_get_cpu_featureset, "get_cpu_featureset" },
    { XEN_SYSCTL_get_cpu_policy, "get_cpu_policy" },
    { 0, NULL },
};
static const struct name hvm[] = { { HVMOP_set_param, "set_param" }, { HVMOP_get_param, "get_param" }, { 0, NULL } };
static const struct name evtchn[] = {
    { EVTCHNOP_alloc_unbound, "alloc_unbound" },
    { EVTCHNOP_close, "close" },
    { 0, NULL },
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char kind[64];
    unsigned long count;
} kinds[128];
static unsigned long calls, mappings;
static struct timespec unpaused;
static const char *path;
static pid_t counted;

static const char *name_of(const struct name *names, uint64_t number, char *spare, size_t size)
{
    for (; names->text; names++)
        if (names->number == number)
            return names->text;
    snprintf(spare, size, "op%lu", (unsigned long)number);
    return spare;
}

static void count(unsigned long *sum, const char *family, const char *operation)
{
    char kind[sizeof kinds[0].kind];
    size_t i;

    snprintf(kind, sizeof kind, operation ? "%s %s" : "%s", family, operation);
    pthread_mutex_lock(&lock);
    ++*sum;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!kinds[i].count || !strcmp(kinds[i].kind, kind)) {
            strcpy(kinds[i].kind, kind);
            kinds[i].count++;
            break;
        }
    pthread_mutex_unlock(&lock);
}

static void count_hypercall(uint64_t op, const uint64_t *arg)
{
    char family[24], operation[24];
    const struct name *names = NULL;
    uint64_t number = 0;

    switch (op) {
    case __HYPERVISOR_multicall: {
        const multicall_entry_t *call = (const void *)(uintptr_t)arg[0];
        uint64_t i;

        for (i = 0; i < arg[1]; i++)
            count_hypercall(call[i].op, (const uint64_t *)call[i].args);
        return;
    }
    /* These two begin with a 32-bit command in a buffer... */
    case __HYPERVISOR_domctl:
        names = domctl;
        number = *(const uint32_t *)(uintptr_t)arg[0];
        /* As /proc/uptime has it. */
        if (number == XEN_DOMCTL_unpausedomain && !unpaused.tv_sec)
            clock_gettime(CLOCK_BOOTTIME, &unpaused);
        break;
    case __HYPERVISOR_sysctl:
        names = sysctl;
        number = *(const uint32_t *)(uintptr_t)arg[0];
        break;
    /* ...and these have it as their first argument. */
    case __HYPERVISOR_memory_op:
        names = memory;
        number = arg[0];
        break;
    case __HYPERVISOR_hvm_op:
        names = hvm;
        number = arg[0];
        break;
    case __HYPERVISOR_event_channel_op:
        names = evtchn;
        number = arg[0];
        break;
    }
    count(&calls, name_of(hypercalls, op, family, sizeof family),
          names ? name_of(names, number, operation, sizeof operation) : NULL);
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*next)(int, unsigned long, void *);
    void *argument;
    va_list arguments;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "ioctl");

    if (request == PRIVCMD_HYPERCALL) {
        const struct hypercall *call = argument;

        count_hypercall(call->op, call->arg);
    } else if (IS_PRIVCMD(request, PRIVCMD_MMAP) || IS_PRIVCMD(request, PRIVCMD_MMAPBATCH) ||
               IS_PRIVCMD(request, PRIVCMD_MMAPBATCH_V2)) {
        count(&mappings, "map", "frames");
    } else if (IS_PRIVCMD(request, PRIVCMD_MMAP_RESOURCE)) {
        count(&mappings, "map", "resource");
    }
    return next(fd, request, argument);
}

__attribute__((constructor)) static void begin(void)
{
    path = getenv("HYPERCOUNT");
    counted = getpid();
    /* A program that this one starts would otherwise write its own count over ours. */
    unsetenv("LD_PRELOAD");
}

__attribute__((destructor)) static void end(void)
{
    FILE *file;
    size_t i;

    if (!path || getpid() != counted)
        return;
    file = fopen(path, "w");
    if (!file) {
        perror(path);
        return;
    }
    fprintf(file, "hypercalls %lu\nmappings %lu\n", calls, mappings);
    if (unpaused.tv_sec)
        fprintf(file, "unpaused %ld.%03ld\n", (long)unpaused.tv_sec, unpaused.tv_nsec / 1000000);
    for (i = 0; i < sizeof kinds / sizeof *kinds && kinds[i].count; i++)
        fprintf(file, "%s %lu\n", kinds[i].kind, kinds[i].count);
    if (fclose(file))
        perror(path);
}
