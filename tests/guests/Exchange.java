// SPDX-License-Identifier: Apache-2.0
// Connections inside one JVM: a selector that echoes, and clients with blocking sockets in threads of their own.
// Each sends messages of growing size and compares what comes back; prints how many bytes were exchanged.

import java.io.DataInputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;

public class Exchange {
    static void echo(ServerSocketChannel listener) throws Exception {
        Selector selector = Selector.open();
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        ByteBuffer buffer = ByteBuffer.allocateDirect(65536);
        while (selector.select() >= 0) {
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel channel = listener.accept();
                    channel.configureBlocking(false);
                    channel.register(selector, SelectionKey.OP_READ);
                    continue;
                }
                SocketChannel channel = (SocketChannel) key.channel();
                buffer.clear();
                if (channel.read(buffer) < 0) {
                    channel.close();
                    continue;
                }
                buffer.flip();
                while (buffer.hasRemaining())
                    channel.write(buffer);
            }
            selector.selectedKeys().clear();
        }
    }

    static long exchange(InetSocketAddress address, int seed) throws Exception {
        Random random = new Random(seed);
        long total = 0;
        try (Socket socket = new Socket(address.getAddress(), address.getPort())) {
            socket.setTcpNoDelay(true);
            DataInputStream in = new DataInputStream(socket.getInputStream());
            for (int n = 0; n < 300; n++) {
                byte[] data = new byte[1 + random.nextInt(n * 20 + 1)];
                byte[] got = new byte[data.length];
                random.nextBytes(data);
                socket.getOutputStream().write(data);
                in.readFully(got);
                if (!Arrays.equals(data, got))
                    throw new IllegalStateException("different in message " + n);
                total += data.length;
            }
        }
        return total;
    }

    public static void main(String[] args) throws Exception {
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
        InetSocketAddress address = (InetSocketAddress) listener.getLocalAddress();
        Thread server = new Thread(() -> {
            try {
                echo(listener);
            } catch (Exception e) {
                e.printStackTrace();
                System.exit(2);
            }
        });
        server.setDaemon(true);
        server.start();
        AtomicLong total = new AtomicLong();
        Thread[] clients = new Thread[4];
        for (int i = 0; i < clients.length; i++) {
            int seed = i;
            clients[i] = new Thread(() -> {
                try {
                    total.addAndGet(exchange(address, seed));
                } catch (Exception e) {
                    e.printStackTrace();
                    System.exit(1);
                }
            });
            clients[i].start();
        }
        for (Thread client : clients)
            client.join();
        System.out.println(total.get());
    }
}
