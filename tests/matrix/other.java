// SPDX-License-Identifier: Apache-2.0

// Other CELL STATE: rows of the matrix as a Java program makes them; CELL is the C program, for peers. Java cannot give a descriptor to another
// program, nor fork: what remains is its threads, and children that it starts beside a connection.
import java.io.BufferedReader;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.Socket;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

class Other {
    static final int TURNS = 40, MESSAGE = 64;
    static String cell, state;

    interface Row {
        int run(Socket socket) throws Exception;
    }

    static final class Random {
        long s;

        Random(long seed) {
            s = seed;
        }

        byte[] bytes(int count) {
            byte[] out = new byte[count];
            for (int i = 0; i < count; i++) {
                s ^= s >>> 12;
                s ^= s << 25;
                s ^= s >>> 27;
                out[i] = (byte) (s * 0x2545f4914f6cdd1dL >>> 32);
            }
            return out;
        }
    }

    static int before() {
        return state.equals("unread") || state.equals("half-closed") ? 10000 : state.equals("full") ? 1 << 20 : 0;
    }

    static void setState(Socket socket) throws Exception {
        InputStream in = socket.getInputStream();
        for (int i = 0; i < 60 && !state.equals("offered"); i++) {
            if (in.read() < 0)
                throw new IllegalStateException("the end");
            if (!state.equals("switching"))
                socket.getOutputStream().write(0);
        }
        while ((state.equals("unread") || state.equals("half-closed")) && in.available() < before())
            Thread.sleep(1);
        if (state.equals("full"))
            Thread.sleep(20);
    }

    static int actor(Socket socket) throws Exception {
        Random in = new Random(1), out = new Random(2);
        if (!Arrays.equals(socket.getInputStream().readNBytes(before()), in.bytes(before())))
            return 1;
        for (int i = 0; i < TURNS; i++) {
            socket.getOutputStream().write(out.bytes(MESSAGE));
            if (!state.equals("half-closed")
                    && !Arrays.equals(socket.getInputStream().readNBytes(MESSAGE), in.bytes(MESSAGE)))
                return 1;
        }
        socket.shutdownOutput();
        return socket.getInputStream().read() == -1 ? 0 : 1;
    }

    static int inThread(Socket socket) throws Exception {
        int[] result = {125};
        Thread thread = new Thread(() -> {
            try {
                result[0] = actor(socket);
            } catch (Exception e) {
                e.printStackTrace();
            }
        });
        thread.start();
        thread.join();
        return result[0];
    }

    static int childBeside(Socket socket) throws Exception {
        Process child = new ProcessBuilder("true").start();
        int status = actor(socket);
        return status != 0 ? status : child.waitFor();
    }

    public static void main(String[] args) throws Exception {
        cell = args[0];
        state = args[1];
        Map<String, Row> rows = new LinkedHashMap<>();
        rows.put("nothing", Other::actor);
        rows.put("pthread", Other::inThread);
        rows.put("posix_spawn beside it", Other::childBeside);
        for (Map.Entry<String, Row> row : rows.entrySet()) {
            Process peer = new ProcessBuilder(cell, "peer", "listen", state)
                    .redirectError(ProcessBuilder.Redirect.INHERIT).start();
            BufferedReader said = new BufferedReader(new InputStreamReader(peer.getInputStream()));
            int status;
            try (Socket socket = new Socket(InetAddress.getByName("127.0.0.1"), Integer.parseInt(said.readLine()))) {
                setState(socket);
                status = row.getValue().run(socket);
            }
            System.out.println(row.getKey() + " " + peer.pid() + " " + status + " " + peer.waitFor());
        }
    }
}
