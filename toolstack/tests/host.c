/*
 * In place of Xen where there is none: a host that xl can read configurations on. It has eight processors on two nodes, an
 * empty xl.conf, and nothing else that could be asked for. Preloaded. Build: gcc -shared -fPIC host.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xenctrl.h>
#include <xenstore.h>

enum { NODES = 2, CPUS = 8 };

/* A handle of libxenctrl that opens no device; each of its hypercalls fails. */
xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger, unsigned open_flags)
{
    xc_interface *(*open)(xentoollog_logger *, xentoollog_logger *, unsigned) = dlsym(RTLD_NEXT, "xc_interface_open");
    return open(logger, dombuild_logger, open_flags | XC_OPENFLAG_DUMMY);
}

struct xs_handle *xs_open(unsigned long flags)
{
    static char here;
    (void)flags;
    return (struct xs_handle *)&here;
}

void xs_close(struct xs_handle *xsh)
{
    (void)xsh;
}

int xc_physinfo(xc_interface *xch, xc_physinfo_t *info)
{
    (void)xch;
    *info = (xc_physinfo_t){
        .threads_per_core = 1,
        .cores_per_socket = CPUS / NODES,
        .nr_cpus = CPUS,
        .max_cpu_id = CPUS - 1,
        .nr_nodes = NODES,
        .max_node_id = NODES - 1,
        .total_pages = 1 << 20,
        .free_pages = 1 << 19,
    };
    return 0;
}

int xc_get_max_cpus(xc_interface *xch)
{
    (void)xch;
    return CPUS;
}

int xc_get_online_cpus(xc_interface *xch)
{
    (void)xch;
    return CPUS;
}

int xc_get_max_nodes(xc_interface *xch)
{
    (void)xch;
    return NODES;
}

int xc_cputopoinfo(xc_interface *xch, unsigned *max_cpus, xc_cputopo_t *cputopo)
{
    (void)xch;
    for (unsigned cpu = 0; cputopo && cpu < *max_cpus && cpu < CPUS; cpu++)
        cputopo[cpu] = (xc_cputopo_t){ .core = cpu % (CPUS / NODES), .socket = cpu / (CPUS / NODES), .node = cpu / (CPUS / NODES) };
    *max_cpus = CPUS;
    return 0;
}

long xc_sharing_freed_pages(xc_interface *xch)
{
    (void)xch;
    return 0;
}

long xc_sharing_used_frames(xc_interface *xch)
{
    (void)xch;
    return 0;
}

int xc_version(xc_interface *xch, int cmd, void *arg)
{
    (void)xch;
    switch (cmd) {
    case XENVER_version:
        return 4 << 16 | 17;
    case XENVER_pagesize:
        return 4096;
    case XENVER_extraversion:
        memset(arg, 0, sizeof(xen_extraversion_t));
        return 0;
    case XENVER_compile_info:
        memset(arg, 0, sizeof(xen_compile_info_t));
        return 0;
    case XENVER_capabilities:
        memset(arg, 0, sizeof(xen_capabilities_info_t));
        return 0;
    case XENVER_changeset:
        memset(arg, 0, sizeof(xen_changeset_info_t));
        return 0;
    case XENVER_platform_parameters:
        memset(arg, 0, sizeof(xen_platform_parameters_t));
        return 0;
    case XENVER_commandline:
        memset(arg, 0, sizeof(xen_commandline_t));
        return 0;
    default:
        errno = ENOSYS;
        return -1;
    }
}

/* What this machine's xl.conf says is not what the test is about. */
int libxl_read_file_contents(void *ctx, const char *filename, void **data, int *length)
{
    int (*read)(void *, const char *, void **, int *) = dlsym(RTLD_NEXT, "libxl_read_file_contents");
    if (strcmp(filename, "/etc/xen/xl.conf"))
        return read(ctx, filename, data, length);
    *data = calloc(1, 1);
    *length = 0;
    return 0;
}
