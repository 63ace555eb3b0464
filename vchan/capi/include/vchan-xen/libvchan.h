/*
 * libvchan.h: a byte stream in both directions between two qubes.
 *
 * The declarations of Qubes' header of this name, for programs that use its libvchan-xen or TesseraQt-N's in its place. What
 * the latter does otherwise is in its documentation (c-libraries.md); what it offers besides is in libvchan-extra.h.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LIBVCHAN_H
#define LIBVCHAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A descriptor for poll and select. */
typedef int EVTCHN;

/* What libvchan_is_open says: the other side, or its domain, has gone; both are here; the client has not come, or the server
 * not appeared, yet. */
#define VCHAN_DISCONNECTED 0
#define VCHAN_CONNECTED 1
#define VCHAN_WAITING 2

struct libvchan;
typedef struct libvchan libvchan_t;

/* Offers a channel to `domain` at `port`. The ring that this side reads holds at least `read_min` bytes, the other one
 * `write_min`; at most 1 MiB. It blocks. NULL on failure. */
libvchan_t *libvchan_server_init(int domain, int port, size_t read_min, size_t write_min);

/* Connects to `port` of `domain`; waits until it is offered. It blocks. NULL on failure. */
libvchan_t *libvchan_client_init(int domain, int port);

/* The same without waiting: whenever `watch_fd` is readable, libvchan_client_init_async_finish is called, until it no longer
 * returns 1. The descriptor is closed then. NULL on failure. */
libvchan_t *libvchan_client_init_async(int domain, int port, EVTCHN *watch_fd);

/* 0: connected; 1: not yet; -1: never, and only libvchan_close is left. */
int libvchan_client_init_async_finish(libvchan_t *ctrl, bool blocking);

/* Writes all bytes, or, if the channel does not block, those for which there is room: how many; -1 on failure. */
int libvchan_write(libvchan_t *ctrl, const void *data, size_t size);

/* Writes all `size` bytes in one piece: `size`; 0 if there is no room for them and the channel does not block; -1 on
 * failure. */
int libvchan_send(libvchan_t *ctrl, const void *data, size_t size);

/* Reads what is there, at most `size` bytes: how many; 0 if nothing is and the channel does not block; -1 at the end, or on
 * failure. */
int libvchan_read(libvchan_t *ctrl, void *data, size_t size);

/* Reads exactly `size` bytes: `size`; 0 if they are not there and the channel does not block; -1 on failure. */
int libvchan_recv(libvchan_t *ctrl, void *data, size_t size);

/* Waits until the other side did something: 0, now and then also if it did not; -1 on failure. */
int libvchan_wait(libvchan_t *ctrl);

/* Ends the channel and frees it. What was written can still be read by the other side. NULL is allowed. */
void libvchan_close(libvchan_t *ctrl);

/* A descriptor that is readable while libvchan_wait would not wait. */
EVTCHN libvchan_fd_for_select(libvchan_t *ctrl);

int libvchan_is_open(libvchan_t *ctrl);

/* How many bytes can be read, or written, now. The descriptor tells of more. */
int libvchan_data_ready(libvchan_t *ctrl);
int libvchan_buffer_space(libvchan_t *ctrl);

/* Whether calls wait until they can do something. Only once the channel is connected. */
void libvchan_set_blocking(libvchan_t *ctrl, bool blocking);

#ifdef __cplusplus
}
#endif
#endif
