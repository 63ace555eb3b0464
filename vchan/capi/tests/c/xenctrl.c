/*
 * In place of libxenctrl, where there is no Xen to ask: every domain lives. For vchan-socket-proxy, which asks for nothing
 * else. Preloaded. Build: gcc -shared -fPIC xenctrl.c
 */
#include <xenctrl.h>

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger, unsigned open_flags)
{
    static char here;
    (void)logger, (void)dombuild_logger, (void)open_flags;
    return (xc_interface *)&here;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first_domid, unsigned max_doms, xc_dominfo_t *info)
{
    (void)xch, (void)max_doms;
    *info = (xc_dominfo_t){ .domid = first_domid, .running = 1 };
    return 1;
}
