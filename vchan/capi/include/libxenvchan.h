/*
 * libxenvchan.h: a byte stream in both directions between two Xen domains.
 *
 * The declarations of Xen 4.17's header of this name, for programs that use its library or TesseraQt-N's in its place. What
 * the latter does otherwise is in its documentation (c-libraries.md); what it offers besides is in libxenvchan-extra.h.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LIBXENVCHAN_H
#define LIBXENVCHAN_H

#include <stddef.h>
#include <stdint.h>
#include <xen/io/libxenvchan.h>
#include <xen/xen.h>
#include <xen/sys/evtchn.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#ifdef __cplusplus
extern "C" {
#endif

struct xentoollog_logger;

/* One direction, as this side sees it. */
struct libxenvchan_ring {
    struct ring_shared *shr; /* its two indices, in the control page */
    void *buffer;            /* its bytes */
    int order;               /* log2 of its size; a copy, since the other side can write the control page */
};

/* One side of a channel. To be looked at; server_persist and blocking may also be set. */
struct libxenvchan {
    union {
        xengntshr_handle *gntshr; /* a server's */
        xengnttab_handle *gnttab; /* a client's */
    };
    struct vchan_interface *ring; /* the control page, shared with the other side */
    xenevtchn_handle *event;
    uint32_t event_port;
    int is_server : 1;
    int server_persist : 1; /* a server is never at the end: another client may come */
    int blocking : 1;       /* calls wait until they can do something */
    struct libxenvchan_ring read, write;
    char *xs_path; /* where a server has published */
};

/*
 * Offers a channel to `domain` under `xs_path` in xenstore (absolute, or below the own domain's home). The ring that this
 * side reads holds at least `read_min` bytes, the other one `write_min`; at most 1 MiB. NULL on failure.
 */
struct libxenvchan *libxenvchan_server_init(struct xentoollog_logger *logger, int domain, const char *xs_path,
                                            size_t read_min, size_t write_min);

/* Connects to the channel that `domain` offers under `xs_path` (absolute). One client at a time. NULL on failure. */
struct libxenvchan *libxenvchan_client_init(struct xentoollog_logger *logger, int domain, const char *xs_path);

/* Ends the channel and frees it. What was written can still be read by the other side. NULL is allowed. */
void libxenvchan_close(struct libxenvchan *ctrl);

/* Reads exactly `size` bytes: `size`; 0 if they are not there and the channel does not block; -1 on failure. */
int libxenvchan_recv(struct libxenvchan *ctrl, void *data, size_t size);

/* Reads what is there, at most `size` bytes: how many; 0 if nothing is and the channel does not block; -1 at the end, or on
 * failure. */
int libxenvchan_read(struct libxenvchan *ctrl, void *data, size_t size);

/* Writes all `size` bytes in one piece: `size`; 0 if there is no room for them and the channel does not block; -1 on
 * failure. */
int libxenvchan_send(struct libxenvchan *ctrl, const void *data, size_t size);

/* Writes all bytes, or, if the channel does not block, those for which there is room: how many; -1 on failure. */
int libxenvchan_write(struct libxenvchan *ctrl, const void *data, size_t size);

/* Waits until the other side did something: 0, now and then also if it did not; -1 on failure. */
int libxenvchan_wait(struct libxenvchan *ctrl);

/* A descriptor that is readable while libxenvchan_wait would not wait. For poll and select alone. */
int libxenvchan_fd_for_select(struct libxenvchan *ctrl);

/* 0: the other side has gone; 1: both are here; 2: no client came yet. */
int libxenvchan_is_open(struct libxenvchan *ctrl);

/* How many bytes can be read now. The descriptor tells of more. */
int libxenvchan_data_ready(struct libxenvchan *ctrl);

/* How many bytes can be written now. The descriptor tells of more. */
int libxenvchan_buffer_space(struct libxenvchan *ctrl);

#ifdef __cplusplus
}
#endif
#endif
