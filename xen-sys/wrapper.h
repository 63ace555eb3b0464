/* The headers of libxen-dev from which build.rs generates the bindings. */
#include <stdio.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>
#include <xenstore.h>
#include <xentoollog.h>
#include <xen/grant_table.h>
#include <xen/hvm/e820.h>
#include <xen/hvm/params.h>
#include <xen/hvm/save.h>
#include <xen/arch-x86/hvm/start_info.h>
#include <xen/io/libxenvchan.h>
#include <xen/memory.h>
#include <xen/xen.h>
#include <xen/io/xs_wire.h>
