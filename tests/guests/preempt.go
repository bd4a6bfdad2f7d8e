// SPDX-License-Identifier: Apache-2.0

// preempt: one processor for a goroutine that never calls anything and for two that talk over a connection. These get on only if Go's
// runtime interrupts the first by SIGURG, which therefore comes in at every place of their calls, too.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
)

const rounds, message = 50, 3000

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func echo(listener net.Listener) {
	conn, err := listener.Accept()
	must(err)
	_, err = io.Copy(conn.(io.Writer), struct{ io.Reader }{conn})
	must(err)
	conn.Close()
}

func main() {
	runtime.GOMAXPROCS(1)
	interrupted := make(chan os.Signal, 1<<16)
	signal.Notify(interrupted, syscall.SIGURG)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go echo(listener)
	conn, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	var over, spins atomic.Uint64
	go func() {
		for over.Load() == 0 {
			spins.Add(1)
		}
		over.Store(2)
	}()
	sent, back := make([]byte, message), make([]byte, message)
	for i := 0; i < rounds; i++ {
		for j := range sent {
			sent[j] = byte(i + 7*j)
		}
		_, err = conn.Write(sent)
		must(err)
		_, err = io.ReadFull(conn, back)
		must(err)
		if !bytes.Equal(sent, back) {
			fmt.Fprintln(os.Stderr, "other bytes than were sent, round", i)
			os.Exit(1)
		}
		runtime.Gosched()
	}
	over.Store(1)
	for over.Load() != 2 {
		runtime.Gosched()
	}
	if len(interrupted) < rounds/10 || spins.Load() == 0 {
		fmt.Fprintln(os.Stderr, "interrupted only", len(interrupted), "times")
		os.Exit(1)
	}
	must(conn.Close())
	fmt.Println("ok")
}
