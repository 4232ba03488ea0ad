package hbone
