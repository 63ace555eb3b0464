/*
 * Opens and closes so many channels, in every way, over both of our libraries; nothing may be left of them. What a domain
 * grants at a time is limited (XENSIM_GRANT_LIMIT), so a page that stays granted is noticed as well.
 *
 *   open-close COUNT
 *
 * Build: gcc open-close.c -lxenvchan -lvchan-xen
 */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <libvchan.h>
#include <libxenvchan.h>

static char bytes[5000], got[5000];

static int descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static void in_domain(const char *id)
{
    setenv("XENSIM_DOMID", id, 1);
}

static void xenvchan(size_t size, int client_first)
{
    struct libxenvchan *server, *client;
    in_domain("1");
    CHECK(server = libxenvchan_server_init(NULL, 2, "data/vchan/2/7", size, size));
    in_domain("2");
    CHECK(client = libxenvchan_client_init(NULL, 1, "/local/domain/1/data/vchan/2/7"));
    server->blocking = client->blocking = 1;
    CHECK(libxenvchan_write(client, bytes, 1000) == 1000);
    /* Leaves some, so that there is room which was not given back. */
    CHECK(libxenvchan_read(server, got, 10) == 10);
    CHECK(libxenvchan_fd_for_select(client) >= 0);
    CHECK(libxenvchan_write(server, bytes, 1000) == 1000);
    CHECK(libxenvchan_recv(client, got, 1000) == 1000);
    libxenvchan_close(client_first ? client : server);
    libxenvchan_close(client_first ? server : client);
}

static void libvchan(int port)
{
    EVTCHN fd;
    libvchan_t *server, *client, *never;
    in_domain("1");
    CHECK(server = libvchan_server_init(2, port, 1000, 5000));
    in_domain("2");
    CHECK(client = libvchan_client_init(1, port));
    CHECK(!libvchan_wait(server));
    CHECK(libvchan_send(client, bytes, 500) == 500 && libvchan_recv(server, got, 500) == 500);
    CHECK(never = libvchan_client_init_async(1, port + 1, &fd));
    CHECK(libvchan_client_init_async_finish(never, true) == 1);
    libvchan_close(never);
    libvchan_close(server);
    libvchan_close(client);
}

/* What fails leaves nothing, either. */
static void failures(void)
{
    in_domain("1");
    /* The first ring is granted, the second one not. */
    FAILS(libxenvchan_server_init(NULL, 2, "data/vchan/2/7", 1 << 19, 1 << 20), NULL, ENOSPC);
    FAILS(libxenvchan_server_init(NULL, 2, "/local/domain/2/not/mine", 5000, 0), NULL, EACCES);
    FAILS(libvchan_server_init(2, 7, 1 << 20, 1 << 20), NULL, ENOSPC);
    in_domain("2");
    FAILS(libxenvchan_client_init(NULL, 1, "/local/domain/1/data/none"), NULL, ENOENT);
    FAILS(libvchan_client_init(2, 7), NULL, EINVAL);
}

int main(int argc, char **argv)
{
    int count = argc == 2 ? atoi(argv[1]) : 0, before = 0;
    CHECK(count > 0);
    for (int i = 0; i < count; i++) {
        switch (i % 4) {
        case 0: xenvchan(1024, i & 4); break;
        case 1: xenvchan(65536, i & 4); break;
        case 2: libvchan(7); break;
        case 3: failures(); break;
        }
        if (i == 3)
            before = descriptors();
    }
    CHECK(descriptors() == before);
    puts("ok");
    return 0;
}
