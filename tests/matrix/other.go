// SPDX-License-Identifier: Apache-2.0

// other CELL STATE: rows of the matrix as a Go program makes them; CELL is the C program, for peers and images.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const turns, message = 40, 64

var cell, state string

type random uint64

func (r *random) bytes(n int) []byte {
	out, s := make([]byte, n), uint64(*r)
	for i := range out {
		s ^= s >> 12
		s ^= s << 25
		s ^= s >> 27
		out[i] = byte(s * 0x2545f4914f6cdd1d >> 32)
	}
	*r = random(s)
	return out
}

func before() int {
	switch state {
	case "unread", "half-closed":
		return 10000
	case "full":
		return 1 << 20
	}
	return 0
}

func setState(conn net.Conn) {
	one := make([]byte, 1)
	for i := 0; i < 60 && state != "offered"; i++ {
		if _, err := io.ReadFull(conn, one); err != nil {
			panic(err)
		}
		if state != "switching" {
			conn.Write(one)
		}
	}
	time.Sleep(20 * time.Millisecond)
}

func actor(conn *net.TCPConn) int {
	in, out := random(1), random(2)
	same := func(n int) bool {
		buf := make([]byte, n)
		_, err := io.ReadFull(conn, buf)
		return err == nil && bytes.Equal(buf, in.bytes(n))
	}
	if !same(before()) {
		return 1
	}
	for i := 0; i < turns; i++ {
		if _, err := conn.Write(out.bytes(message)); err != nil || (state != "half-closed" && !same(message)) {
			return 1
		}
	}
	conn.CloseWrite()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return 1
	}
	return 0
}

func inThread(conn *net.TCPConn) int {
	done := make(chan int)
	go func() {
		runtime.LockOSThread()
		done <- actor(conn)
	}()
	return <-done
}

func inetd(conn *net.TCPConn) int {
	file, _ := conn.File()
	child := exec.Command(cell, "actor", "0", state)
	child.Stdin, child.Stderr = file, os.Stderr
	if child.Start() != nil {
		return 125
	}
	file.Close()
	conn.Close()
	child.Wait()
	return child.ProcessState.ExitCode()
}

// In a process of its own, since nothing comes back.
func executed(conn *net.TCPConn) int {
	file, _ := conn.File()
	child := exec.Command("/proc/self/exe", cell, state, "execute")
	child.ExtraFiles, child.Stderr = []*os.File{file}, os.Stderr
	if child.Start() != nil {
		return 125
	}
	file.Close()
	conn.Close()
	child.Wait()
	return child.ProcessState.ExitCode()
}

func main() {
	cell, state = os.Args[1], os.Args[2]
	if len(os.Args) > 3 {
		syscall.Exec(cell, []string{cell, "actor", "3", state}, os.Environ())
		os.Exit(126)
	}
	rows := []struct {
		name string
		run  func(*net.TCPConn) int
	}{{"nothing", actor}, {"pthread", inThread}, {"inetd", inetd}, {"execve", executed}}
	for _, row := range rows {
		peer := exec.Command(cell, "peer", "listen", state)
		text, _ := peer.StdoutPipe()
		peer.Start()
		port, _ := bufio.NewReader(text).ReadString('\n')
		conn, err := net.Dial("tcp", "127.0.0.1:"+strings.TrimSpace(port))
		if err != nil {
			panic(err)
		}
		setState(conn)
		status := row.run(conn.(*net.TCPConn))
		conn.Close()
		peer.Wait()
		fmt.Println(row.name, peer.Process.Pid, status, peer.ProcessState.ExitCode())
	}
}
